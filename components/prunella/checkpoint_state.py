"""What a checkpoint holds, by logical name, whatever the sharding; and the digest over it.

Tensors are named `model.<parameter or persistent buffer>` and `optim.<parameter>.<moment>`; everything else is one
`TrainingState` record. The learning rate is a pure function of the step, so the scheduler is the step itself. Nothing
here reads or writes files, and the digest never covers time, attempt, node names, world size or RNG state.

Shapes: scalars (AdamW's `step`) are stored with shape (1), because safetensors slices cannot address shape ().
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from prunella.errors import CheckpointInvalid
from prunella.records import Record, Window

MODEL = "model."
OPTIM = "optim."


@dataclass(frozen=True, kw_only=True, slots=True)
class RngState:
    """Random state of one rank, in hexadecimal. `accelerator` is None on a rank without one."""

    cpu: str
    accelerator: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingState(Record):
    """All of a training run that is not a tensor.

    `tokens` counts from the start of the experiment, `batch` is the next batch of the data order, `dataset` the
    fingerprint of the data set, `detector` the statistics of the loss history (R4), `rng` one entry a rank, filled in by
    the writer.
    """

    KIND = "training_state"
    step: int
    tokens: int
    batch: int
    dataset: str
    seed: int
    world_size: int
    skipped: tuple[Window, ...] = ()
    detector: dict[str, tuple[float, ...] | float] | None = None
    rng: tuple[RngState, ...] = ()


def capture_rng() -> RngState:
    """The random state of this process now."""
    accelerator = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return RngState(
        cpu=_hex(torch.get_rng_state()),
        accelerator=None if accelerator is None else _hex(accelerator),
    )


def restore_rng(state: TrainingState, *, rank: int, world_size: int) -> bool:
    """Put this rank's random state back; False, changing nothing, at another world size than the one that saved it."""
    if world_size != state.world_size:
        return False
    saved = state.rng[rank]
    torch.set_rng_state(_bytes(saved.cpu))
    if saved.accelerator is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(saved.accelerator))
    return True


def _hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


# ------------------------------------------------------------------------------------------------ logical tensors


def logical_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Live tensors of a run by logical name, sharing memory with it; DTensors stay DTensors."""
    tensors = {f"{MODEL}{name}": tensor.detach() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for moment, value in sorted(optimizer.state.get(parameter, {}).items()):
            tensors[f"{OPTIM}{name}.{moment}"] = value.detach()
    return {name: tensor.reshape(1) if tensor.dim() == 0 else tensor for name, tensor in tensors.items()}


def stage(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in host memory that later training steps cannot touch."""
    copies = {name: _staged(tensor) for name, tensor in tensors.items()}
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return copies


def _staged(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor.detach().to("cpu", copy=True).contiguous()
    local = tensor.to_local().detach().to("cpu", copy=True).contiguous()
    # DTensor.from_local would move the copy back to the mesh's device.
    staged: Tensor = DTensor(local, tensor._spec, requires_grad=False)  # type: ignore[no-untyped-call]
    return staged


def make_room(model: nn.Module, optimizer: Optimizer, sizes: dict[str, tuple[torch.Size, torch.dtype]]) -> None:
    """Give the optimizer zero moments of the kinds that a checkpoint holds, so that they can be loaded in place.

    Raises:
        CheckpointInvalid: a moment belongs to no parameter of the model.
    """
    parameters = dict(model.named_parameters())
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    optimizer.state.clear()
    for name, (size, dtype) in sizes.items():
        if not name.startswith(OPTIM):
            continue
        owner, _, moment = name.removeprefix(OPTIM).rpartition(".")
        parameter = parameters.get(owner)
        if parameter is None or parameter not in groups:
            raise CheckpointInvalid(f"tensor {name!r} belongs to no parameter of this model")
        optimizer.state[parameter][moment] = _zero_moment(parameter, moment, size, dtype, groups[parameter])


def _zero_moment(
    parameter: nn.Parameter, moment: str, size: torch.Size, dtype: torch.dtype, group: dict[str, object]
) -> Tensor:
    if moment != "step" and size == parameter.shape:
        return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
    is_on_device = bool(group.get("capturable") or group.get("fused"))
    return torch.zeros((), dtype=dtype, device=parameter.device if is_on_device else "cpu")


# ------------------------------------------------------------------------------------------------ digests


def logical_digest(tensors: dict[str, Tensor], state: TrainingState) -> str:
    """`sha256:<64 hex>` over parameters, buffers, moments and counters (DESIGN 4.10).

    Args:
        tensors: full (not sharded) tensors by logical name, on the CPU.
    """
    counters = f"step={state.step} tokens={state.tokens} batch={state.batch}"
    return f"sha256:{_hash(tensors, counters)}"


def parameter_digest(tensors: dict[str, Tensor]) -> str:
    """`sha256:<64 hex>` over the model's own tensors only: equal for equal weights, whatever the counters say (R2)."""
    return f"sha256:{_hash({name: tensor for name, tensor in tensors.items() if name.startswith(MODEL)}, '')}"


def _hash(tensors: dict[str, Tensor], counters: str) -> str:
    sha256 = hashlib.sha256(counters.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        sha256.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def model_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's part, under the names that `model.load_state_dict` wants."""
    return {name.removeprefix(MODEL): tensor for name, tensor in tensors.items() if name.startswith(MODEL)}
