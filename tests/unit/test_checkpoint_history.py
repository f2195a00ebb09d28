"""The list of checkpoints is a fold over the ledger; retention never deletes what is needed or what is evidence (R1)."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from prunella.checkpoint_history import CheckpointState, list_checkpoints, newest_verified, prune
from prunella.errors import Cause
from prunella.ledger import Ledger, open_ledger
from prunella.records import (
    AttemptOpened,
    CheckpointManifest,
    CheckpointMark,
    EvaluationRecord,
    Failure,
    FileEntry,
    SegmentOpened,
    Stage,
    ValidationRecord,
    Verdict,
)

V, R, C = Verdict.ACCEPTED, Verdict.REJECTED, None


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = open_ledger(str(tmp_path), "tiny")
    for segment in (0, 1):
        ledger.open_run(SegmentOpened(segment=segment, run_index=0, run_id="r0", opened_ns=1))
        for attempt in (0, 1):
            ledger.open_attempt(
                AttemptOpened(segment=segment, attempt=attempt, run_index=0, run_id="r0", rung=attempt, opened_ns=1, nodes=())
            )
    return ledger


def _commit(ledger: Ledger, verdicts: list[Verdict | None], *, segment: int = 0, attempt: int = 0) -> list[str]:
    """One checkpoint for each verdict (None: nobody judged it); their names."""
    names = []
    for index, verdict in enumerate(verdicts):
        name = f"{segment:04d}-{attempt:02d}-{index:04d}"
        key = f"{ledger.checkpoint_prefix(name)}/shard.safetensors"
        ledger.store.put_new(key, b"weights")
        manifest = CheckpointManifest(
            name=name, experiment="tiny", segment=segment, attempt=attempt, step=index + 1, world_size=1, config_digest="c",
            dataset="d", files=(FileEntry(key=key, sha256="0" * 64, size_bytes=7),), metrics=(), probe_loss_nats=1.0,
            torch_version="2", written_ns=1,
        )  # fmt: skip
        ledger.put(ledger.manifest_key(name), manifest)
        if verdict is not None:
            _judge(ledger, manifest, verdict)
        names.append(name)
    return names


def _judge(ledger: Ledger, manifest: CheckpointManifest, verdict: Verdict) -> None:
    failure = None if verdict is V else Failure(cause=Cause.CHECKPOINT_INVALID, message="damaged")
    record = ValidationRecord(
        stage=Stage.CHECKPOINT_VALIDATION, verdict=verdict, started_ns=1, ended_ns=2, failure=failure,
        checkpoint=ledger.ref(manifest), digest=f"sha256:{manifest.name}", checks=(),
    )  # fmt: skip
    ledger.put(ledger.verdict_key(manifest.name), record)


def _mark(ledger: Ledger, name: str, mark: str) -> None:
    ledger.put(ledger.mark_key(name, mark), CheckpointMark(checkpoint=name, reason="test", at_ns=1))


def _evaluate(ledger: Ledger, name: str, loss_nats: float, *, is_regression: bool = False) -> None:
    """What the evaluation of the attempt that wrote the checkpoint says of it."""
    manifest = next(status.manifest for status in list_checkpoints(ledger) if status.manifest.name == name)
    record = EvaluationRecord(
        stage=Stage.EVALUATION, verdict=V, started_ns=1, ended_ns=2, checkpoint=ledger.ref(manifest), digest="sha256:d",
        heldout_loss_nats=loss_nats, bits_per_byte=1.0, heldout_tokens=1, scores=(), is_regression=is_regression,
    )  # fmt: skip
    ledger.put(ledger.record_key(manifest.segment, manifest.attempt, Stage.EVALUATION), record)


def _with_data(ledger: Ledger) -> list[str]:
    found = list_checkpoints(ledger)
    return [s.manifest.name for s in found if ledger.store.exists(s.manifest.files[0].key)]


def test_the_list_follows_segments_steps_and_attempts_and_tells_each_state(ledger: Ledger) -> None:
    _commit(ledger, [V, R])
    _commit(ledger, [V, C], attempt=1)
    _commit(ledger, [V, C], segment=1)
    _mark(ledger, "0000-00-0000", "promoted")
    _mark(ledger, "0000-01-0000", "revoked")

    found = list_checkpoints(ledger)

    assert [(s.manifest.name, s.state, s.is_promoted) for s in found] == [
        ("0000-00-0000", CheckpointState.VERIFIED, True),
        ("0000-01-0000", CheckpointState.REVOKED, False),
        ("0000-00-0001", CheckpointState.REJECTED, False),
        ("0000-01-0001", CheckpointState.CANDIDATE, False),
        ("0001-00-0000", CheckpointState.VERIFIED, False),
        ("0001-00-0001", CheckpointState.CANDIDATE, False),
    ]
    assert found[0].digest == "sha256:0000-00-0000"
    assert ledger.manifest(found[0].ref) == found[0].manifest


def test_newest_verified_passes_over_candidates_rejected_and_revoked_ones(ledger: Ledger) -> None:
    _commit(ledger, [V, V])
    _commit(ledger, [V, R, C], segment=1)
    _mark(ledger, "0001-00-0000", "revoked")

    newest = newest_verified(ledger)

    assert newest is not None
    assert newest.manifest.name == "0000-00-0001"


def test_an_older_attempt_that_got_further_is_the_newest_unless_it_is_revoked(ledger: Ledger) -> None:
    first = _commit(ledger, [V, V, V])
    second = _commit(ledger, [V, V], attempt=1)

    before = prune(ledger, keep_last=1, keep_every=0, is_dry_run=True)
    _mark(ledger, first[2], "revoked")
    after = newest_verified(ledger)

    assert first[2] not in [status.manifest.name for status in before]
    assert after is not None
    assert after.manifest.name == second[1]


def test_newest_verified_is_none_in_a_new_experiment(ledger: Ledger) -> None:
    assert newest_verified(ledger) is None


def test_retention_keeps_the_last_verified_ones(ledger: Ledger) -> None:
    names = _commit(ledger, [V, V, V, V])

    released = prune(ledger, keep_last=2, keep_every=0, is_dry_run=False)

    assert [status.manifest.name for status in released] == names[:2]
    assert _with_data(ledger) == names[2:]


def test_retention_keeps_what_lies_between_the_verified_ones_it_keeps(ledger: Ledger) -> None:
    names = _commit(ledger, [V, C, V, C, R, V])

    prune(ledger, keep_last=2, keep_every=0, is_dry_run=False)

    assert _with_data(ledger) == names[2:]


def test_retention_releases_nothing_while_fewer_are_verified_than_it_keeps(ledger: Ledger) -> None:
    names = _commit(ledger, [C, C, V, R, V, C])

    assert prune(ledger, keep_last=3, keep_every=0, is_dry_run=False) == []
    assert _with_data(ledger) == names


@pytest.mark.parametrize("keep_last", [0, 1])
def test_retention_never_deletes_the_last_verified_one(ledger: Ledger, keep_last: int) -> None:
    names = _commit(ledger, [V, V, R, C])

    prune(ledger, keep_last=keep_last, keep_every=0, is_dry_run=False)

    assert _with_data(ledger) == names[1:]
    newest = newest_verified(ledger)
    assert newest is not None
    assert newest.manifest.name == names[1]


def test_retention_deletes_nothing_where_nothing_is_verified(ledger: Ledger) -> None:
    names = _commit(ledger, [R, C, R])

    assert prune(ledger, keep_last=1, keep_every=0, is_dry_run=False) == []
    assert _with_data(ledger) == names


def test_every_mth_verified_one_stays_for_ever_also_when_pruned_again(ledger: Ledger) -> None:
    names = _commit(ledger, [V, V, V, V, V, V, V])

    for _ in range(3):
        prune(ledger, keep_last=1, keep_every=3, is_dry_run=False)

    assert _with_data(ledger) == [names[2], names[5], names[6]]


def test_the_newest_promoted_one_stays(ledger: Ledger) -> None:
    names = _commit(ledger, [V, V, V, V])
    _mark(ledger, names[0], "promoted")
    _mark(ledger, names[1], "promoted")

    prune(ledger, keep_last=1, keep_every=0, is_dry_run=False)

    assert _with_data(ledger) == [names[1], names[3]]


@pytest.mark.parametrize(
    ("loss_nats", "is_regression", "is_kept"),
    [(2.0, False, True), (2.0, True, False), (3.0, False, False), (math.nan, False, False)],
)
def test_the_best_one_stays(ledger: Ledger, loss_nats: float, is_regression: bool, is_kept: bool) -> None:
    early = _commit(ledger, [V, V])
    late = _commit(ledger, [V, V, V], segment=1)
    _evaluate(ledger, early[1], loss_nats, is_regression=is_regression)
    _evaluate(ledger, late[1], 2.5)
    _mark(ledger, late[1], "promoted")

    prune(ledger, keep_last=1, keep_every=0, is_dry_run=False)

    assert _with_data(ledger) == [*(early[1:] if is_kept else []), *late[1:]]


def test_one_that_was_the_best_goes_when_a_better_one_is_there(ledger: Ledger) -> None:
    first, last = _commit(ledger, [V]), _commit(ledger, [V, V], segment=1)
    _evaluate(ledger, first[0], 3.0)
    prune(ledger, keep_last=2, keep_every=0, is_dry_run=False)
    while_best = _with_data(ledger)
    _evaluate(ledger, last[0], 2.0)

    prune(ledger, keep_last=2, keep_every=0, is_dry_run=False)

    assert while_best == [*first, *last]
    assert _with_data(ledger) == last


def test_rejected_ones_lose_their_data_only_after_a_newer_verified_one_and_keep_their_evidence(ledger: Ledger) -> None:
    older, _, newer = _commit(ledger, [R, V, R])

    prune(ledger, keep_last=1, keep_every=0, is_dry_run=False)

    assert older not in _with_data(ledger)
    assert newer in _with_data(ledger)
    assert ledger.store.list(ledger.checkpoint_prefix(older)) == ["manifest.json", "pruned.json", "verdict.json"]
    verdict = ledger.validation(older)
    assert verdict is not None
    assert verdict.failure is not None


def test_candidates_that_a_verified_one_overtook_are_released_with_what_a_failed_save_left(ledger: Ledger) -> None:
    overtaken, _, fresh = _commit(ledger, [C, V, C])
    ledger.store.put_new(f"{ledger.checkpoint_prefix(overtaken)}/left-by-a-failed-save.safetensors", b"x")

    prune(ledger, keep_last=1, keep_every=0, is_dry_run=False)

    assert ledger.store.list(ledger.checkpoint_prefix(overtaken)) == ["manifest.json", "pruned.json"]
    assert fresh in _with_data(ledger)


def test_a_dry_run_tells_and_touches_nothing(ledger: Ledger) -> None:
    names = _commit(ledger, [V, V])

    released = prune(ledger, keep_last=1, keep_every=0, is_dry_run=True)

    assert [status.manifest.name for status in released] == names[:1]
    assert _with_data(ledger) == names
    assert ledger.mark(names[0], "pruned") is None


def test_a_prune_killed_between_mark_and_deletion_is_finished_by_the_next(ledger: Ledger) -> None:
    names = _commit(ledger, [V, V])
    _mark(ledger, names[0], "pruned")

    released = prune(ledger, keep_last=1, keep_every=0, is_dry_run=False)

    assert released == []
    assert _with_data(ledger) == names[1:]


def test_schedulers_read_the_history_without_torch() -> None:
    code = "import sys, prunella.checkpoint_history; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
