"""A tiny experiment to save and load checkpoints of, and a job of two ranks that does it under FSDP2 and expert parallelism.

Imported by the tests for its builders; run as `checkpoint_job.py ROOT RANK WORLD_SIZE` it is one rank of that job, which
writes what it found to `ROOT/found.json`.
"""

import dataclasses
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from prunella import checkpoints, config_text
from prunella.checkpoint_state import logical_tensors
from prunella.config import BatchConfig, CheckpointConfig, Config, ModelConfig
from prunella.data.manifest import DatasetManifest, Shard, manifest_key, shard_key
from prunella.ledger import Ledger, open_ledger
from prunella.model.losses import step_loss
from prunella.model.parallel import parallelize
from prunella.model.transformer import Transformer
from prunella.records import (
    AttemptOpened,
    CheckpointRef,
    ExperimentRecord,
    FileEntry,
    SegmentOpened,
    Stage,
    TrainRequest,
    to_bytes,
)
from prunella.storage import create_root
from prunella.training_segment.optimizer import build_optimizer

EXPERIMENT = "tiny"
DATASET = "fingerprint0"
TIMEOUT_S = 240

CONFIG = Config(
    seed=11,
    steps_per_segment=8,
    model=ModelConfig(
        vocab_size=259, seq_len=8, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, n_experts=4, expert_ffn_dim=8,
        n_dense_layers=1, ffn_dim=24, router_bias=True,
    ),
    batch=BatchConfig(global_sequences=4, micro_sequences=2),
    checkpoint=CheckpointConfig(interval_steps=2),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ ledger


def make_experiment(root: Path | str, config: Config = CONFIG) -> Ledger:
    """An opened experiment with a data set, and attempt 0 of segment 0."""
    create_root(str(root))
    ledger = open_ledger(str(root), EXPERIMENT)
    mapping = config_text.to_mapping(config)
    record = ExperimentRecord(
        name=EXPERIMENT, opened_ns=time.time_ns(), config=mapping, config_digest="c" * 64, faults=(), versions={}
    )
    ledger.put(ledger.experiment_key, record)
    ledger.open_run(SegmentOpened(segment=0, run_index=0, run_id="r0", opened_ns=time.time_ns()))
    open_attempt(ledger, 0)
    _make_dataset(ledger)
    return ledger


def open_attempt(ledger: Ledger, attempt: int) -> None:
    ledger.open_attempt(
        AttemptOpened(segment=0, attempt=attempt, run_index=0, run_id="r0", rung=attempt, opened_ns=time.time_ns(), nodes=())
    )


def _make_dataset(ledger: Ledger) -> None:
    tokens = np.random.default_rng(0).integers(0, CONFIG.model.vocab_size, 200).astype("<u2").tobytes()
    key = shard_key(DATASET, "heldout", 0)
    ledger.store.put_new(key, tokens)
    file = FileEntry(key=key, sha256=hashlib.sha256(tokens).hexdigest(), size_bytes=len(tokens))
    manifest = DatasetManifest(
        fingerprint=DATASET, tokenizer=file, vocab_size=259, end_of_text=256, dtype="uint16", train=(),
        heldout=(Shard(file=file, tokens=200, documents=1),), documents=1, duplicates=0, heldout_bytes=0, train_tokens=0,
        heldout_tokens=200,
    )  # fmt: skip
    ledger.store.put_new(manifest_key(DATASET), to_bytes(manifest))


def request(ledger: Ledger, *, attempt: int = 0, first_step: int = 1, last_step: int = 8) -> TrainRequest:
    return TrainRequest(
        stage=Stage.TRAINING_SEGMENT, root=ledger.store.root, experiment=EXPERIMENT, config_digest="c" * 64, output="unused",
        attempt=attempt, first_step=first_step, last_step=last_step, total_steps=8, dataset=DATASET,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ training


class Run:
    """A model in training, on one process or on many ranks."""

    def __init__(self, config: Config = CONFIG, *, seed: int = 11, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size, self.config = rank, world_size, config
        self.model = Transformer(config.model)
        self.model.init_weights(seed)
        if dist.is_initialized():
            parallelize(self.model, config, world_size=world_size, device=torch.device("cpu"))
        self.optimizer = build_optimizer(self.model, config.optim)

    def train(self, step: int) -> None:
        """One optimizer step on a batch that is a pure function of the step."""
        sequences, seq_len = self.config.batch.global_sequences, self.config.model.seq_len
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(self.config.model.vocab_size, (sequences, seq_len + 1), generator=generator)
        tokens = tokens.chunk(self.world_size)[self.rank]
        output = self.model(tokens[:, :-1])
        loss = step_loss(output, tokens[:, 1:], self.model, tokens_global=sequences * seq_len)
        loss.total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        counts_LE = torch.stack([seen.counts_E for seen in output.router])
        if dist.is_initialized():
            dist.all_reduce(counts_LE)
        self.model.update_routing(counts_LE, tokens=sequences * seq_len)

    def state(self, step: int) -> checkpoints.TrainingState:
        tokens = step * self.config.batch.global_sequences * self.config.model.seq_len
        return checkpoints.TrainingState(
            step=step, tokens=tokens, batch=step, dataset=DATASET, seed=self.config.seed, world_size=self.world_size,
            detector={"losses": (5.5, 5.25), "median": 5.375},
        )  # fmt: skip

    def digest(self, step: int) -> str:
        """Digest of the live tensors, gathered over ranks; independent of the code that saves."""
        tensors = logical_tensors(self.model, self.optimizer)
        full = {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in tensors.items()}
        return checkpoints.logical_digest(full, self.state(step))


def probe_loss(ledger: Ledger, run: Run) -> float:
    from prunella.data.manifest import load_manifest

    batch = checkpoints.probe_batch(ledger.store, load_manifest(ledger.store, DATASET), run.config)
    return checkpoints.probe_loss(run.model, batch)


def save(ledger: Ledger, writer: checkpoints.CheckpointWriter, run: Run, step: int, metrics: Path | None = None) -> None:
    writer.save(step, run.model, run.optimizer, run.state(step), probe_loss(ledger, run), metrics)


def make_checkpoints(
    ledger: Ledger, scratch: Path, *, steps: int = 2, every: int = 2, config: Config = CONFIG
) -> list[CheckpointRef]:
    """Train alone from the beginning and save every `every` steps; the references, oldest first."""
    run = Run(config)
    writer = checkpoints.CheckpointWriter(ledger, request(ledger), config, rank=0, world_size=1, scratch=scratch)
    for step in range(1, steps + 1):
        run.train(step)
        if step % every == 0:
            save(ledger, writer, run, step)
    writer.wait()
    writer.close()
    return [ledger.ref(manifest) for manifest in ledger.candidates(0, 0)]


# ------------------------------------------------------------------------------------------------ the job of two ranks


def run_job(root: Path, world_size: int = 2) -> dict[str, object]:
    """Run this file as `world_size` ranks; what they found."""
    environment = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "PRUNELLA_SCRATCH": str(root / "scratch")}
    command = [sys.executable, __file__, str(root)]
    ranks = [
        subprocess.Popen([*command, str(rank), str(world_size)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(world_size)
    ]
    try:
        errors = [rank.communicate(timeout=TIMEOUT_S)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(errors)
    found: dict[str, object] = json.loads((root / "found.json").read_text())
    return found


def _rank(root: Path, rank: int, world_size: int) -> dict[str, object]:
    create_root(str(root / "two"))
    ledger = open_ledger(str(root / "two"), EXPERIMENT)
    found: dict[str, object] = {}

    run = Run(rank=rank, world_size=world_size)
    writer = _writer(ledger, root, rank, world_size)
    metrics = root / "metrics.jsonl" if rank == 0 else None
    for step in range(1, 5):
        run.train(step)
        if rank == 0:
            with (root / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step}) + "\n")
        found[f"digest_{step}"] = run.digest(step)
        if step % 2 == 0:
            save(ledger, writer, run, step, metrics)  # training goes on while the thread writes
    writer.wait()
    found["durable_step"] = writer.durable_step
    found["random"] = torch.rand(4).tolist()

    refs = [ledger.ref(manifest) for manifest in ledger.candidates(0, 0)]
    found["resumed_digest_4"] = _resume_twice(ledger, root, refs[0], rank, world_size)
    other = Run(seed=99, rank=rank, world_size=world_size)
    create_root(str(root / "one"))
    one = open_ledger(str(root / "one"), EXPERIMENT)
    checkpoints.load(one, one.ref(one.candidates(0, 0)[-1]), other.model, other.optimizer)
    found["loaded_from_one"] = other.digest(2)
    found["rng_at_other_size"] = checkpoints.restore_rng(other.state(2), rank=rank, world_size=world_size + 1)
    found["failed_save"] = _fail_on_one_rank(ledger, root, run, rank, world_size)
    found["failed_load"] = _damage_and_load(ledger, refs[1], other, rank)
    return found


def _writer(ledger: Ledger, root: Path, rank: int, world_size: int, **changes: int) -> checkpoints.CheckpointWriter:
    scratch = root / f"scratch-{rank}"
    scratch.mkdir(exist_ok=True)
    return checkpoints.CheckpointWriter(
        ledger, request(ledger, **changes), CONFIG, rank=rank, world_size=world_size, scratch=scratch
    )


def _resume_twice(ledger: Ledger, root: Path, ref: CheckpointRef, rank: int, world_size: int) -> str:
    """Load step 2, train step 3, save, load that into a third model, train step 4."""
    if rank == 0:
        open_attempt(ledger, 1)
    second = Run(seed=99, rank=rank, world_size=world_size)
    state = checkpoints.load(ledger, ref, second.model, second.optimizer)
    assert checkpoints.restore_rng(state, rank=rank, world_size=world_size)
    second.train(state.batch + 1)
    writer = _writer(ledger, root, rank, world_size, attempt=1, first_step=3)
    save(ledger, writer, second, 3)
    second.train(4)
    writer.wait()
    third = Run(seed=98, rank=rank, world_size=world_size)
    checkpoints.load(ledger, ledger.ref(ledger.candidates(0, 1)[0]), third.model, third.optimizer)
    third.train(4)
    return third.digest(4)


def _fail_on_one_rank(ledger: Ledger, root: Path, run: Run, rank: int, world_size: int) -> str:
    """Only rank 1 cannot write its scratch folder; what this rank is told."""
    writer = _writer(ledger, root, rank, world_size, attempt=1, first_step=4)
    if rank == 1:
        (root / "scratch-1").rmdir()
        (root / "scratch-1").write_text("a file where a folder should be")
    save(ledger, writer, run, 4)
    try:
        writer.wait()
    except checkpoints_error() as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def checkpoints_error() -> type[Exception]:
    from prunella.errors import PrunellaError

    return PrunellaError


def _damage_and_load(ledger: Ledger, ref: CheckpointRef, run: Run, rank: int) -> str:
    """Flip a byte in one shard, which only one rank verifies; what this rank is told."""
    from prunella.faults import flip_byte

    manifest = ledger.manifest(ref)
    if rank == 0:
        flip_byte(ledger.store, manifest.files[0].key)
    dist.barrier()
    try:
        checkpoints.load(ledger, ref, run.model, run.optimizer)
    except checkpoints_error() as error:
        return f"{type(error).__name__}: {error}"
    finally:
        dist.barrier()
        if rank == 0:
            flip_byte(ledger.store, manifest.files[0].key)
    return "nothing"


def _main(root: Path, rank: int, world_size: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=world_size)
    found = _rank(root, rank, world_size)
    everyone: list[object] = [None] * world_size
    dist.all_gather_object(everyone, found)
    if rank == 0:
        both = {name: [answer[name] for answer in everyone] for name in found}  # type: ignore[index]
        (root / "found.json").write_text(json.dumps(both))
    dist.destroy_process_group()


def with_checkpoint(config: Config, **changes: object) -> Config:
    return dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, **changes))  # type: ignore[arg-type]


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
