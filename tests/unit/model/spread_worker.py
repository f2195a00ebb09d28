"""One rank of the two-rank tests: trains a small model under several layouts and writes what came of it.

Arguments: output folder, rank, world size, device type (cpu or cuda). Run by `test_parallel.py`; not a test itself.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.tensor import DTensor

from prunella.config import Config, ModelConfig, OptimConfig, ParallelConfig, Precision
from prunella.model.losses import step_loss
from prunella.model.parallel import clip_, grad_norm, parallelize
from prunella.model.timing import clock
from prunella.model.transformer import Transformer

SEQUENCES, SEQ_LEN, VOCAB = 12, 16, 300
DEVICE = torch.device("cpu")


def small_config(expert_parallel: int, precision: Precision = Precision.FP32) -> Config:
    """Every feature at once: a dense and two expert layers, shared expert, bias, grouped queries."""
    model = ModelConfig(
        vocab_size=VOCAB,
        seq_len=SEQ_LEN,
        d_model=16,
        n_layers=3,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        n_dense_layers=1,
        ffn_dim=24,
        n_experts=4,
        expert_ffn_dim=16,
        n_shared_experts=1,
        top_k=(1, 1, 2),
        router_bias=True,
    )
    return Config(model=model, parallel=ParallelConfig(expert_parallel=expert_parallel), optim=OptimConfig(precision=precision))


def global_batch(step: int) -> Tensor:
    """The tokens of a step, (sequences, length + 1), the same for everybody who asks."""
    return torch.randint(0, VOCAB, (SEQUENCES, SEQ_LEN + 1), generator=torch.Generator().manual_seed(step))


def backward(model: Transformer, tokens_BT1: Tensor) -> tuple[Tensor, Tensor]:
    """One micro-batch; returns its share of the loss and its counts (expert layers, experts)."""
    tokens_BT1 = tokens_BT1.to(next(model.parameters()).device)
    output = model(tokens_BT1[:, :-1])
    loss = step_loss(output, tokens_BT1[:, 1:], model, tokens_global=SEQUENCES * SEQ_LEN)
    loss.total.backward()
    return loss.total.detach(), torch.stack([seen.counts_E for seen in output.router])


def build(config: Config, world_size: int) -> Transformer:
    model = Transformer(config.model)
    model.init_weights(seed=3)
    parallelize(model, config, world_size=world_size, device=DEVICE)
    return model


def full(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().cpu().clone() for name, t in tensors.items()}


def gradients(config: Config, rank: int, world_size: int) -> dict[str, object]:
    """Loss, gradients and their norm of one step."""
    clock.take()
    model = build(config, world_size)
    loss, _ = backward(model, global_batch(0).chunk(world_size)[rank])
    dist.all_reduce(loss)
    norm = grad_norm(model)
    waited_ns = clock.take()
    grads = full({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    clip_(model, norm, float(norm) / 2)
    return {"loss": loss.cpu(), "grads": grads, "norm": norm.cpu(), "clipped": grad_norm(model).cpu(), "waited_ns": waited_ns}


def train(config: Config, rank: int, world_size: int, save_to: Path | None = None) -> dict[str, Tensor]:
    """The whole state after three optimizer steps, also written to `save_to`."""
    model = build(config, world_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(3):
        _, counts = backward(model, global_batch(step).chunk(world_size)[rank])
        dist.all_reduce(counts)
        optimizer.step()
        optimizer.zero_grad()
        model.update_routing(counts, tokens=SEQUENCES * SEQ_LEN)
    if save_to is not None:
        dcp.save(model.state_dict(), storage_writer=dcp.HuggingFaceStorageWriter(str(save_to), save_distributed=True))
    return full(model.state_dict())


def load_elsewhere(config: Config, world_size: int, folder: Path) -> dict[str, Tensor]:
    """The saved state read into the layout of `config`."""
    model = build(config, world_size)
    state = model.state_dict()
    dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(folder)))
    model.load_state_dict(state)
    return full(model.state_dict())


def main(folder: Path, rank: int, world_size: int, device_type: str) -> None:
    global DEVICE
    DEVICE = torch.device(device_type, rank) if device_type == "cuda" else torch.device(device_type)
    if device_type == "cuda":
        torch.cuda.set_device(DEVICE)
    torch.set_num_threads(1)
    dist.init_process_group(
        "nccl" if device_type == "cuda" else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    results = {
        "replicated": gradients(small_config(1), rank, world_size),
        "spread": gradients(small_config(0), rank, world_size),
        "bf16": gradients(small_config(0, Precision.BF16), rank, world_size),
        "first": train(small_config(0), rank, world_size, folder / "saved"),
        "second": train(small_config(0), rank, world_size),
        "loaded": load_elsewhere(small_config(1), world_size, folder / "saved"),
    }
    torch.save(results, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
