"""The training segment with real ranks under torchrun, on a tiny model and real token shards.

The crown property: a run whose rank was killed and that resumed from its candidate ends with the weights, moments and
counters of the run that was never broken, bit for bit.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prunella import checkpoints, codec
from prunella.config import (
    BatchConfig,
    CheckpointConfig,
    Config,
    ModelConfig,
    OnSaveFailure,
    OptimConfig,
    Precision,
    StorageConfig,
    TrainingConfig,
)
from prunella.config_text import to_mapping
from prunella.data.manifest import DatasetManifest, Shard, manifest_key, shard_key, tokenizer_key
from prunella.errors import Cause, Fenced
from prunella.ledger import Ledger, open_ledger
from prunella.node_processes import process_state
from prunella.records import (
    AttemptOpened,
    CheckpointRef,
    ExperimentRecord,
    FileEntry,
    NodeRef,
    Part,
    Stage,
    StepRecord,
    StopReason,
    TrainRecord,
    TrainRequest,
    Verdict,
    to_bytes,
)
from prunella.scratch import attempt_scratch
from prunella.storage import create_root
from prunella.training_segment import agents, stage
from prunella.training_segment.heartbeat import Heartbeat, read_heartbeat
from waiting import wait_until

NODES = (NodeRef(name="node-0"), NodeRef(name="node-1"))
STEPS = 8
FINGERPRINT = "f" * 16

TINY = Config(
    segments=1,
    steps_per_segment=STEPS,
    model=ModelConfig(
        vocab_size=300,
        seq_len=32,
        d_model=32,
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        head_dim=16,
        ffn_dim=64,
        n_experts=4,
        expert_ffn_dim=32,
        router_bias=True,
    ),
    batch=BatchConfig(global_sequences=8, micro_sequences=2),
    checkpoint=CheckpointConfig(interval_steps=4),
    training=TrainingConfig(hang_floor_s=3.0, hang_factor=10.0, startup_timeout_s=120.0, fence_poll_s=0.2),
    storage=StorageConfig(retry_s=30.0),
)


@pytest.fixture(scope="module", autouse=True)
def _scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNELLA_SCRATCH", str(tmp_path_factory.mktemp("scratch")))
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, _scratch: None) -> tuple[TrainRecord, Ledger, str]:
    """The run that nothing happens to, and the digest of its last checkpoint."""
    ledger = open_experiment(tmp_path_factory.mktemp("unbroken"))
    record = stage.run(TINY, request_for(ledger))
    return record, ledger, digest_of_last(ledger)


# ------------------------------------------------------------------------------------------------ an experiment without Airflow


def open_experiment(folder: Path, *faults: str, config: Config = TINY) -> Ledger:
    root = str(folder / "root")
    create_root(root)
    ledger = open_ledger(root, "tiny")
    mapping = to_mapping(config)
    record = ExperimentRecord(
        name="tiny", opened_ns=time.time_ns(), config=mapping, config_digest=codec.digest(config), faults=faults, versions={}
    )
    ledger.put(ledger.experiment_key, record)
    write_dataset(ledger)
    open_attempt(ledger, 0)
    return open_ledger(root, "tiny")


def open_attempt(ledger: Ledger, attempt: int) -> None:
    opened = AttemptOpened(
        segment=0, attempt=attempt, run_index=0, run_id="r0", rung=attempt, opened_ns=time.time_ns(), nodes=NODES
    )
    ledger.open_attempt(opened)


def write_dataset(ledger: Ledger) -> None:
    tokens = np.random.default_rng(1).integers(0, 300, 4_000).astype("<u2")
    train, heldout = tokens[:3_600], tokens[3_600:]
    manifest = DatasetManifest(
        fingerprint=FINGERPRINT,
        tokenizer=put(ledger, tokenizer_key(FINGERPRINT), b"{}"),
        vocab_size=300,
        end_of_text=0,
        dtype="uint16",
        train=(shard(ledger, "train", train),),
        heldout=(shard(ledger, "heldout", heldout),),
        documents=2,
        duplicates=0,
        heldout_bytes=len(heldout),
        train_tokens=len(train),
        heldout_tokens=len(heldout),
    )
    ledger.store.put_new(manifest_key(FINGERPRINT), to_bytes(manifest))


def shard(ledger: Ledger, split: str, tokens: "np.ndarray") -> Shard:
    entry = put(ledger, shard_key(FINGERPRINT, split, 0), tokens.tobytes())
    return Shard(file=entry, tokens=len(tokens), documents=1)


def put(ledger: Ledger, key: str, data: bytes) -> FileEntry:
    ledger.store.put_new(key, data)
    return FileEntry(key=key, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def request_for(
    ledger: Ledger, *, attempt: int = 0, resume: CheckpointRef | None = None, config: Config = TINY, last_step: int = STEPS
) -> TrainRequest:
    return TrainRequest(
        stage=Stage.TRAINING_SEGMENT,
        root=ledger.store.root,
        experiment="tiny",
        config_digest=codec.digest(config),
        output=ledger.record_key(0, attempt, "training_segment"),
        segment=0,
        attempt=attempt,
        nodes=NODES,
        first_step=resume.step + 1 if resume else 1,
        last_step=last_step,
        total_steps=STEPS,
        dataset=FINGERPRINT,
        resume=resume,
    )


def last_candidate(ledger: Ledger, attempt: int = 0) -> CheckpointRef:
    return ledger.ref(ledger.candidates(0, attempt)[-1])


def digest_of_last(ledger: Ledger, attempt: int = 0) -> str:
    return checkpoints.logical_digest(*checkpoints.read_full(ledger, last_candidate(ledger, attempt)))


def healed(ledger: Ledger, *, config: Config = TINY) -> TrainRecord:
    """Attempt 1, from the newest candidate of attempt 0, or from nothing when there is none."""
    candidates = ledger.candidates(0, 0)
    open_attempt(ledger, 1)
    resume = ledger.ref(candidates[-1]) if candidates else None
    return stage.run(config, request_for(ledger, attempt=1, resume=resume, config=config))


def step_records(ledger: Ledger, record: TrainRecord, attempt: int = 0) -> list[StepRecord]:
    chunks = [entry for manifest in ledger.candidates(0, attempt) for entry in manifest.metrics] + list(record.metrics)
    lines = [line for entry in chunks for line in ledger.read_verified(entry.key, entry.sha256).splitlines()]
    return [codec.decode(StepRecord, json.loads(line), "test") for line in lines]


def living_ranks(ledger: Ledger, attempt: int = 0) -> list[bool]:
    scratch = attempt_scratch(ledger.store.root, "tiny", 0, attempt, opened_ns=0)
    beats = [beat for rank in range(len(NODES)) if (beat := read_heartbeat(scratch, rank)) is not None]
    return [process_state(beat.pid, beat.process_start) is not None for beat in beats]


def assert_nothing_lives(ledger: Ledger, attempt: int = 0) -> None:
    assert living_ranks(ledger, attempt) == [False] * len(NODES)


# ------------------------------------------------------------------------------------------------ promises


def test_unbroken_run_is_accepted_with_candidates_and_every_step_recorded(unbroken: tuple[TrainRecord, Ledger, str]) -> None:
    record, ledger, _ = unbroken

    steps = step_records(ledger, record)

    assert (record.verdict, record.stopped_by, record.last_step) == (Verdict.ACCEPTED, StopReason.END, STEPS)
    assert [manifest.step for manifest in ledger.candidates(0, 0)] == [4, 8]
    assert record.candidates == 2
    assert [step.step for step in steps] == list(range(1, STEPS + 1))
    assert all(exit_.is_recorded and exit_.exit_code == 0 for exit_ in record.exits)
    assert_nothing_lives(ledger)


def test_parts_of_a_step_add_up_and_steps_leave_no_gap(unbroken: tuple[TrainRecord, Ledger, str]) -> None:
    record, ledger, _ = unbroken

    steps = step_records(ledger, record)

    for step in steps:
        parts = step.data_ns + step.compute_ns + step.communication_ns + step.checkpoint_ns
        assert parts == step.end_ns - step.start_ns
        assert [sum(layer) for layer in step.tokens_per_expert] == [step.tokens * 2] * 2
    assert [step.start_ns for step in steps[1:]] == [step.end_ns for step in steps[:-1]]
    first_step = next(span for span in record.spans if span.part is Part.FIRST_STEP)
    assert first_step.end_ns == steps[0].start_ns


def test_killed_rank_is_named_and_the_resumed_run_ends_with_the_unbroken_digest(
    tmp_path: Path, unbroken: tuple[TrainRecord, Ledger, str]
) -> None:
    ledger = open_experiment(tmp_path, "kill:rank=1,step=6")

    broken = stage.run(TINY, request_for(ledger))
    mended = healed(ledger)

    assert broken.failure is not None
    assert (broken.failure.cause, broken.failure.rank, broken.failure.node) == (Cause.PROCESS_CRASH, 1, "node-1")
    assert broken.failure.step == 6
    assert broken.exits[1].signal == signal.SIGKILL
    assert not broken.exits[1].is_recorded
    assert broken.last_step == 5
    assert [step.step for step in step_records(ledger, broken)] == [1, 2, 3, 4, 5]
    assert mended.verdict is Verdict.ACCEPTED
    assert mended.first_step == 5
    assert digest_of_last(ledger, 1) == unbroken[2]


def test_hung_rank_is_named_and_the_resumed_run_ends_with_the_unbroken_digest(
    tmp_path: Path, unbroken: tuple[TrainRecord, Ledger, str]
) -> None:
    ledger = open_experiment(tmp_path, "hang:rank=0,step=3")

    broken = stage.run(TINY, request_for(ledger))
    mended = healed(ledger)

    assert broken.failure is not None
    assert (broken.failure.cause, broken.failure.rank, broken.failure.step) == (Cause.HANG, 0, 3)
    assert broken.failure.evidence["process_state"] == "T"
    assert_nothing_lives(ledger)
    assert mended.verdict is Verdict.ACCEPTED
    assert digest_of_last(ledger, 1) == unbroken[2]


def test_poisoned_gradient_is_refused_before_the_weights_and_blamed_on_the_rank_that_computed_it(tmp_path: Path) -> None:
    ledger = open_experiment(tmp_path, "nan:rank=1,step=3")

    record = stage.run(TINY, request_for(ledger))

    assert record.failure is not None
    assert (record.failure.cause, record.failure.rank, record.failure.node) == (Cause.NON_FINITE, 1, "node-1")
    assert record.failure.step == 3
    assert record.last_step == 2
    assert record.verdict is Verdict.REJECTED


def test_sigterm_finishes_the_step_and_saves(tmp_path: Path) -> None:
    config = replace(TINY, steps_per_segment=5_000)
    ledger = open_experiment(tmp_path, config=config)
    request = replace(request_for(ledger, config=config, last_step=5_000), total_steps=5_000)
    threading.Thread(target=_sigterm_after_first_step, args=(ledger,), daemon=True).start()

    record = stage.run(config, request)

    assert record.failure is None, record.failure
    assert (record.verdict, record.stopped_by) == (Verdict.ACCEPTED, StopReason.SIGNAL)
    assert ledger.candidates(0, 0)[-1].step == record.last_step < 5_000
    assert_nothing_lives(ledger)


def _sigterm_after_first_step(ledger: Ledger) -> None:
    _wait_for_step(attempt_scratch(ledger.store.root, "tiny", 0, 0, opened_ns=0), 2)
    os.kill(os.getpid(), signal.SIGTERM)


def _wait_for_step(scratch: Path, step: int) -> Heartbeat:
    """Rank 0's heartbeat once it is in `step`."""

    def beat_in_step() -> Heartbeat | None:
        beat = read_heartbeat(scratch, 0)
        return beat if beat is not None and beat.step >= step else None

    beat = wait_until(beat_in_step, f"rank 0 is in step {step}")
    assert beat is not None
    return beat


def test_signal_before_the_first_step_is_an_interruption_that_says_so(tmp_path: Path) -> None:
    config = replace(TINY, training=replace(TINY.training, grace_s=0.1))
    ledger = open_experiment(tmp_path, config=config)
    threading.Thread(target=_sigterm_after_first_word, args=(ledger,), daemon=True).start()

    record = stage.run(config, request_for(ledger, config=config))

    assert (record.verdict, record.stopped_by, record.failure) == (Verdict.ACCEPTED, StopReason.SIGNAL, None)
    assert (record.last_step, record.candidates, ledger.candidates(0, 0)) == (0, 0, [])
    assert "before its first step, 1, had finished: nothing was trained and nothing is lost" in record.warnings[-1]
    assert not any(living_ranks(ledger))


def _sigterm_after_first_word(ledger: Ledger) -> None:
    """A rank speaks before it imports anything slow, so that it trains nothing within a tenth of a second."""
    scratch = attempt_scratch(ledger.store.root, "tiny", 0, 0, opened_ns=0)
    wait_until(lambda: read_heartbeat(scratch, 0), "rank 0 speaks", every_s=0.01)
    os.kill(os.getpid(), signal.SIGTERM)


def test_wall_clock_limit_finishes_the_step_and_saves(tmp_path: Path) -> None:
    config = replace(TINY, training=replace(TINY.training, wall_clock_limit_s=0.0))
    ledger = open_experiment(tmp_path, config=config)

    record = stage.run(config, request_for(ledger, config=config))

    assert (record.verdict, record.stopped_by, record.last_step) == (Verdict.ACCEPTED, StopReason.WALL_CLOCK, 1)
    assert [manifest.step for manifest in ledger.candidates(0, 0)] == [1]


def test_ranks_die_with_a_launcher_that_was_killed(tmp_path: Path) -> None:
    config = replace(TINY, steps_per_segment=5_000)
    ledger = open_experiment(tmp_path, config=config)
    request = replace(request_for(ledger, config=config, last_step=5_000), total_steps=5_000)
    launcher = multiprocessing.get_context("spawn").Process(target=stage.run, args=(config, request))
    launcher.start()
    scratch = attempt_scratch(ledger.store.root, "tiny", 0, 0, opened_ns=0)
    _wait_for_step(scratch, 2)

    launcher.kill()
    launcher.join()

    wait_until(lambda: not any(living_ranks(ledger)), "no rank outlives its launcher", timeout_s=10.0)
    assert_nothing_lives(ledger)


def test_fenced_launcher_stops_its_ranks_and_writes_nothing(tmp_path: Path) -> None:
    config = replace(TINY, steps_per_segment=5_000)
    ledger = open_experiment(tmp_path, config=config)
    open_attempt(ledger, 1)

    with pytest.raises(Fenced):
        stage.run(config, replace(request_for(ledger, config=config, last_step=5_000), total_steps=5_000))

    assert ledger.candidates(0, 0) == []


def test_node_whose_agent_dies_before_the_ranks_meet_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = open_experiment(tmp_path)
    whole = agents._command

    def broken_on_node_1(nnodes: int, index: int, *rest: object) -> list[str]:
        return ["false"] if index == 1 else whole(nnodes, index, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(agents, "_command", broken_on_node_1)

    record = stage.run(TINY, request_for(ledger))

    assert record.failure is not None
    assert (record.failure.cause, record.failure.rank, record.failure.node) == (Cause.PROCESS_CRASH, 1, "node-1")


def test_save_that_is_tried_again_outlasts_an_outage_longer_than_the_patience_of_a_call(
    tmp_path: Path, unbroken: tuple[TrainRecord, Ledger, str]
) -> None:
    config = replace(
        TINY,
        checkpoint=replace(TINY.checkpoint, on_save_failure=OnSaveFailure.RETRY),
        storage=StorageConfig(retry_s=3.0, first_delay_s=0.1, max_delay_s=1.0),
    )
    ledger = open_experiment(tmp_path, "storage-down:seconds=8,step=4", config=config)

    record = stage.run(config, request_for(ledger, config=config))

    assert record.failure is None, record.failure
    assert (record.verdict, record.last_step) == (Verdict.ACCEPTED, STEPS)
    assert digest_of_last(ledger) == unbroken[2]


def test_storage_outage_is_waited_out_and_recorded(tmp_path: Path, unbroken: tuple[TrainRecord, Ledger, str]) -> None:
    ledger = open_experiment(tmp_path, "storage-down:seconds=3,step=4")

    record = stage.run(TINY, request_for(ledger))

    assert record.verdict is Verdict.ACCEPTED
    assert record.outages
    assert digest_of_last(ledger) == unbroken[2]


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    ledger = open_experiment(tmp_path)
    path = ledger.store.local_path(shard_key(FINGERPRINT, "train", 0))
    path.write_bytes(path.read_bytes()[::-1])

    record = stage.run(TINY, request_for(ledger))

    assert record.failure is not None
    assert record.failure.cause is Cause.DATA_CORRUPT
    assert record.failure.evidence["shard"] == 0


def test_nothing_left_to_train_is_accepted_at_once(tmp_path: Path) -> None:
    ledger = open_experiment(tmp_path)

    record = stage.run(TINY, replace(request_for(ledger), first_step=STEPS + 1))

    assert (record.verdict, record.candidates, record.exits) == (Verdict.ACCEPTED, 0, ())


def test_resume_at_another_world_size_goes_on_with_a_warning(tmp_path: Path) -> None:
    ledger = open_experiment(tmp_path)
    stage.run(TINY, request_for(ledger, last_step=4))
    open_attempt(ledger, 1)

    record = stage.run(TINY, replace(request_for(ledger, attempt=1, resume=last_candidate(ledger)), nodes=NODES[:1]))

    assert record.verdict is Verdict.ACCEPTED
    assert record.world_size == 1
    assert any("world size" in warning for warning in record.warnings)


@pytest.mark.gpu
def test_same_segment_trains_on_an_accelerator(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU: torch.cuda sees none")
    config = replace(TINY, optim=OptimConfig(precision=Precision.BF16))
    ledger = open_experiment(tmp_path, config=config)

    record = stage.run(config, replace(request_for(ledger, config=config), nodes=NODES[:1]))

    assert record.verdict is Verdict.ACCEPTED
    assert ledger.candidates(0, 0)[-1].step == STEPS
