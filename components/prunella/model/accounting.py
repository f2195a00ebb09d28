"""What a model costs: parameters, FLOPs a token, memory a device. Arithmetic on the configuration; allocates nothing.

The counts are exact (a test holds them against the model on the meta device). The FLOPs are the numerator of MFU as FIELD 3
defines it. The memory is what must fit: weights, gradients and moments exactly, activations by the estimate below. torch is
imported only by `describe`, so that a scheduler without torch can import this.
"""

import dataclasses
import math
from dataclasses import dataclass

from prunella.config import Config, ModelConfig, Precision
from prunella.model.expert_layout import expert_parallel_size

_FP32_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """Parameters by kind. `expert_parameters` are those of routed experts, `active_parameters` those one token meets."""

    parameters: int
    active_parameters: int
    embedding_parameters: int
    expert_parameters: int
    router_parameters: int


def _attention(model: ModelConfig) -> int:
    heads = 2 * model.n_heads + 2 * model.n_kv_heads
    return model.d_model * model.head_dim * heads + (2 * model.head_dim if model.qk_norm else 0)


def _expert(model: ModelConfig) -> int:
    return 3 * model.d_model * model.expert_ffn_dim


def _moe_layers(model: ModelConfig) -> list[int]:
    return [layer for layer in range(model.n_layers) if model.is_moe_layer(layer)]


def count(model: ModelConfig) -> ModelSize:
    """Parameters of the model, exactly.

    Active parameters are all but the routed experts a token does not visit: they include the whole embedding table.
    """
    moe = _moe_layers(model)
    embedding = model.vocab_size * model.d_model * (1 if model.tie_embeddings else 2)
    experts = len(moe) * model.n_experts * _expert(model)
    router = len(moe) * model.n_experts * model.d_model
    shared = len(moe) * model.n_shared_experts * _expert(model)
    dense = (model.n_layers - len(moe)) * 3 * model.d_model * model.ffn_dim
    norms = (2 * model.n_layers + 1) * model.d_model
    always = embedding + router + shared + dense + norms + model.n_layers * _attention(model)
    visited = sum(model.top_k_at(layer) for layer in moe) * _expert(model)
    return ModelSize(
        parameters=always + experts,
        active_parameters=always + visited,
        embedding_parameters=embedding,
        expert_parameters=experts,
        router_parameters=router,
    )


def flops_per_token(model: ModelConfig) -> float:
    """Model FLOPs of one trained token, forward and backward: the numerator of MFU.

    Two a multiply-add, three times the forward pass (one forward, two backward), active parameters in matrix products only
    (the embedding lookup multiplies nothing, norms are not counted), causal attention halved, nothing recomputed.
    Source: FIELD 3; PaLM, arXiv 2204.02311, appendix B, with its attention term 12 L H K T halved.
    """
    size = count(model)
    norms = (2 * model.n_layers + 1) * model.d_model + (2 * model.head_dim * model.n_layers if model.qk_norm else 0)
    head = model.vocab_size * model.d_model
    in_products = size.active_parameters - size.embedding_parameters - norms + head
    attention = model.n_layers * 2 * 2 * model.n_heads * model.head_dim * model.seq_len / 2
    return 3.0 * (2.0 * in_products + attention)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPerDevice:
    """Bytes one rank needs. `activations` is an estimate for one micro-batch without recomputation."""

    parameters: int
    gradients: int
    moments: int
    unsharded: int
    activations: int

    @property
    def total(self) -> int:
        """Everything together, without the allocator's slack."""
        return self.parameters + self.gradients + self.moments + self.unsharded + self.activations


def memory_per_device(config: Config, *, world_size: int, expert_parallel: int) -> MemoryPerDevice:
    """What the fullest rank holds while training.

    Shards of weights, gradients and both moments are float32 over all ranks. `unsharded` is what FSDP gathers: the embeddings
    and all layers with this rank's experts, in the arithmetic's type. All layers, because the router's terms of the loss end
    the forward pass and wake every layer's gather at the start of backward.

    Args:
        world_size: ranks.
        expert_parallel: ranks that share the experts of a layer.
    """
    model = config.model
    size = count(model)
    width = _arithmetic_bytes(config)
    shard = math.ceil(size.parameters / world_size) * _FP32_BYTES
    own_experts = math.ceil(size.expert_parameters / expert_parallel)
    return MemoryPerDevice(
        parameters=shard,
        gradients=shard,
        moments=2 * shard,
        unsharded=width * (size.parameters - size.expert_parameters + own_experts),
        activations=_activation_bytes(config),
    )


def _arithmetic_bytes(config: Config) -> int:
    return 2 if config.optim.precision is Precision.BF16 else _FP32_BYTES


def _activation_bytes(config: Config) -> int:
    """Tensors kept for backward, counted in the code of this package; experts under perfect balance.

    A layer keeps per token: 4 D of residual stream and norms; q before and after rotation and the attention's output, k
    likewise and v; for each active expert its input twice, its output and 4 F of the SwiGLU. The end keeps float32 logits
    twice.
    """
    model = config.model
    tokens = config.batch.micro_sequences * model.seq_len
    attention = model.head_dim * (3 * model.n_heads + 3 * model.n_kv_heads)
    elements = model.n_layers * (4 * model.d_model + attention)
    for layer in range(model.n_layers):
        if model.is_moe_layer(layer):
            elements += model.top_k_at(layer) * (3 * model.d_model + 4 * model.expert_ffn_dim)
            elements += 4 * model.n_shared_experts * model.expert_ffn_dim + 3 * model.n_experts
        else:
            elements += 4 * model.ffn_dim
    return tokens * (elements * _arithmetic_bytes(config) + 2 * model.vocab_size * _FP32_BYTES)


#: Dense peak of an accelerator in FLOP/s by the name that torch.cuda.get_device_name gives (its beginning) and the precision.
#: Source: NVIDIA data sheets, 2026-11: H100 SXM and H200 SXM 989 bf16 without sparsity, 67 fp32; A100 312 and 19.5 TFLOP/s.
#: Cards with lower clocks (H100 PCIe, NVL variants) and slices of a card (MIG) are left out: no figure is better than a wrong
#: one.
_PEAKS: dict[str, dict[Precision, float]] = {
    "NVIDIA H200": {Precision.BF16: 989e12, Precision.FP32: 67e12},
    "NVIDIA H100 80GB HBM3": {Precision.BF16: 989e12, Precision.FP32: 67e12},
    "NVIDIA A100": {Precision.BF16: 312e12, Precision.FP32: 19.5e12},
}
#: Words of a name that say that its beginning does not tell the speed.
_OTHER_SPEEDS = ("NVL", "MIG")


def peak_flops(device_name: str, precision: Precision) -> float | None:
    """Dense peak FLOP/s of a device, None where it is not known (any CPU): MFU does not apply there."""
    if any(word in device_name for word in _OTHER_SPEEDS):
        return None
    return next((peaks[precision] for name, peaks in _PEAKS.items() if device_name.startswith(name)), None)


def mfu(config: Config, *, tokens_per_s: float, devices: int, device_name: str) -> float | None:
    """Model FLOPs utilisation in [0, 1], None where the device's peak is not known.

    Args:
        tokens_per_s: tokens trained a second by all devices together.
    """
    peak = peak_flops(device_name, config.optim.precision)
    if peak is None:
        return None
    return flops_per_token(config.model) * tokens_per_s / (peak * devices)


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """A configuration measured for a mesh: what `prunella recipe show` prints. Bytes, FLOPs, counts."""

    recipe: str
    world_size: int
    expert_parallel: int
    size: ModelSize
    memory: MemoryPerDevice
    flops_per_token: float
    tokens_per_step: int

    def lines(self) -> list[str]:
        """For people, one fact a line."""
        size, memory = self.size, self.memory
        return [
            f"recipe             {self.recipe}",
            f"mesh               {self.world_size} devices, {self.expert_parallel} share the experts of a layer",
            f"parameters         {size.parameters:,} ({_short(size.parameters)}), "
            f"{_short(size.embedding_parameters)} in embeddings",
            f"active parameters  {size.active_parameters:,} ({_short(size.active_parameters)})",
            f"memory per device  {_bytes(memory.total)} for one micro-batch without recomputation",
            f"                   {_bytes(memory.parameters)} weights, {_bytes(memory.gradients)} gradients, "
            f"{_bytes(memory.moments)} moments,",
            f"                   {_bytes(memory.unsharded)} gathered, {_bytes(memory.activations)} activations (estimate)",
            f"FLOPs per token    {self.flops_per_token:.3e} forward and backward",
            f"tokens per step    {self.tokens_per_step:,}",
        ]


def _bytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.2f} MiB"


def _short(parameters: int) -> str:
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.2f}M"


def describe(config: Config, *, world_size: int, expert_parallel: int = 0) -> Description:
    """Build the model on the meta device, hold the arithmetic against it, and measure it for a mesh.

    Args:
        world_size: devices.
        expert_parallel: ranks that share the experts of a layer; 0 takes the configuration's choice.

    Raises:
        ConfigError: the experts cannot be divided over the mesh.
    """
    import torch

    from prunella.model.transformer import Transformer

    with torch.device("meta"):
        built = sum(parameter.numel() for parameter in Transformer(config.model).parameters())
    size = count(config.model)
    assert size.parameters == built, f"counted {size.parameters} parameters, the model has {built}"
    asked = dataclasses.replace(config.parallel, expert_parallel=expert_parallel or config.parallel.expert_parallel)
    shared_by = expert_parallel_size(dataclasses.replace(config, parallel=asked), world_size)
    return Description(
        recipe=config.recipe,
        world_size=world_size,
        expert_parallel=shared_by,
        size=size,
        memory=memory_per_device(config, world_size=world_size, expert_parallel=shared_by),
        flops_per_token=flops_per_token(config.model),
        tokens_per_step=config.batch.global_sequences * config.model.seq_len,
    )
