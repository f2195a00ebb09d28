"""How long a save stops training, and how long it takes until the candidate is durable. Two ranks, FSDP2, a folder store.

OMP_NUM_THREADS=1 .venv/bin/python tests/benchmarks/checkpoint_stall.py
"""

import dataclasses
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from prunella import checkpoints
from prunella.config import Config, ModelConfig
from prunella.ledger import open_ledger
from prunella.storage import create_root

SAVES = 5
CONFIG = Config(seed=11, model=ModelConfig(vocab_size=8192, d_model=256, head_dim=64, expert_ffn_dim=192, ffn_dim=768))


def _builders():  # type: ignore[no-untyped-def]
    path = Path(__file__).parents[1] / "unit" / "checkpoint_job.py"
    spec = importlib.util.spec_from_file_location("checkpoint_job", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["checkpoint_job"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _rank(root: Path, rank: int, world_size: int) -> None:
    tiny = _builders()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=world_size)
    create_root(str(root / "root"))
    ledger = open_ledger(str(root / "root"), tiny.EXPERIMENT)
    run = tiny.Run(CONFIG, rank=rank, world_size=world_size)
    size = sum(parameter.numel() for parameter in run.model.parameters())
    writer = checkpoints.CheckpointWriter(
        ledger, tiny.request(ledger), CONFIG, rank=rank, world_size=world_size, scratch=root / f"scratch-{rank}"
    )
    stalls, totals, steps_ms, busy_ms = [], [], [], []
    run.train(1)
    for step in range(2, 2 + SAVES):
        begin = time.perf_counter()
        run.train(step)
        steps_ms.append(1e3 * (time.perf_counter() - begin))
        dist.barrier()
        begin = time.perf_counter()
        writer.save(step, run.model, run.optimizer, run.state(step), 1.0, None)
        stalls.append(1e3 * (time.perf_counter() - begin))
        writer.wait()
        totals.append(1e3 * (time.perf_counter() - begin))
    for step in range(2 + SAVES, 2 + 2 * SAVES):  # a step while a save is under way
        writer.save(step, run.model, run.optimizer, run.state(step), 1.0, None)
        begin = time.perf_counter()
        run.train(step)
        busy_ms.append(1e3 * (time.perf_counter() - begin))
        writer.wait()
    begin = time.perf_counter()
    checkpoints.load(ledger, ledger.ref(ledger.candidates(0, 0)[-1]), run.model, run.optimizer)
    load_ms = 1e3 * (time.perf_counter() - begin)
    if rank == 0:
        middle = [round(statistics.median(values), 1) for values in (stalls, totals, steps_ms, busy_ms)]
        print(
            f"{size / 1e6:.1f} M parameters ({12 * size / 1e6:.0f} MB with moments), {world_size} ranks, median of {SAVES}: "
            f"stall {middle[0]} ms, durable after {middle[1]} ms; step {middle[2]} ms, beside a save {middle[3]} ms; "
            f"load {load_ms:.0f} ms"
        )
    dist.destroy_process_group()


def main() -> None:
    """Start the two ranks."""
    tiny = _builders()
    with tempfile.TemporaryDirectory() as folder:
        tiny.make_experiment(Path(folder) / "root", dataclasses.replace(CONFIG))
        ranks = [subprocess.Popen([sys.executable, __file__, folder, str(rank), "2"]) for rank in (0, 1)]
        for rank in ranks:
            assert rank.wait(timeout=300) == 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _rank(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
