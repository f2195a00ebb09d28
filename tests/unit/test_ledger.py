"""The ledger tells one truth: written once, read back verified, absent means absent."""

import dataclasses
from pathlib import Path

import pytest

from prunella import codec, config_text
from prunella.config import Config, StorageConfig
from prunella.errors import Cause, ConfigError, DigestMismatch, Fenced, KeyExists, KeyMissing, StorageUnavailable
from prunella.faults import OutageStore
from prunella.ledger import Ledger, check_name, list_experiments, open_ledger
from prunella.records import (
    AttemptOpened,
    CheckpointManifest,
    CheckpointMark,
    DataPrepRecord,
    Directive,
    ExperimentRecord,
    FailedRecord,
    Failure,
    GateNodeRequest,
    Outcome,
    SegmentClosed,
    SegmentOpened,
    Stage,
    Verdict,
)
from prunella.storage import FolderStore


def _attempt(attempt: int) -> AttemptOpened:
    return AttemptOpened(segment=0, attempt=attempt, run_index=0, run_id="r", rung=attempt, opened_ns=1, nodes=())


def _manifest(index: int, *, probe_loss_nats: float = 1.5) -> CheckpointManifest:
    return CheckpointManifest(
        name=f"0000-00-{index:04d}",
        experiment="demo",
        segment=0,
        attempt=0,
        step=10 * (index + 1),
        world_size=2,
        config_digest="c",
        dataset="d",
        files=(),
        metrics=(),
        probe_loss_nats=probe_loss_nats,
        torch_version="2.13.0",
        written_ns=1,
    )


def _close(run_index: int, outcome: Outcome) -> SegmentClosed:
    return SegmentClosed(segment=0, run_index=run_index, run_id="r", outcome=outcome, message="", opened_ns=1, closed_ns=2)


# ------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize("name", ["a", "0", "tiny-moe-7", "a" * 63])
def test_an_ordinary_name_is_accepted(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a/b", "..", "a b", "a\n", "ä", "a" * 64])
def test_a_name_that_would_not_fit_keys_run_ids_and_hosts_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 63 lower-case letters"):
        check_name(name)


@pytest.mark.parametrize("name", ["A", "../demo"])
def test_a_ledger_is_not_built_for_such_a_name(store: FolderStore, name: str) -> None:
    with pytest.raises(ConfigError):
        Ledger(store, name)


# ------------------------------------------------------------------------------------------------ records


def test_put_answers_with_the_digest_that_references_use(ledger: Ledger) -> None:
    sha256 = ledger.put("x.json", _attempt(0))

    assert ledger.sha256("x.json") == sha256
    assert ledger.find(AttemptOpened, "x.json") == _attempt(0)
    assert ledger.read_verified("x.json", sha256) == ledger.store.get("x.json")


def test_a_record_is_never_replaced(ledger: Ledger) -> None:
    ledger.put("x.json", _attempt(0))

    with pytest.raises(KeyExists):
        ledger.put("x.json", _attempt(1))

    assert ledger.find(AttemptOpened, "x.json") == _attempt(0)


def test_absence_is_none_and_damage_is_an_error(ledger: Ledger, root: str) -> None:
    ledger.put("x.json", _attempt(0))
    path = Path(root) / "x.json"
    path.write_bytes(path.read_bytes().replace(b'"attempt":0', b'"attempt":1'))

    assert ledger.find(AttemptOpened, "y.json") is None
    with pytest.raises(DigestMismatch, match=r"x\.json: the record is damaged"):
        ledger.find(AttemptOpened, "x.json")


def test_bytes_that_changed_after_the_commit_are_refused_before_use(ledger: Ledger) -> None:
    ledger.store.put_new("shard", b"changed")

    with pytest.raises(DigestMismatch, match=r"shard: expected sha256 00.*it changed after it was committed"):
        ledger.read_verified("shard", "00")


def test_a_stage_that_raised_left_its_failure_where_its_record_would_be(ledger: Ledger) -> None:
    failed = FailedRecord(
        stage=Stage.DATA_PREP,
        verdict=Verdict.UNKNOWN,
        started_ns=1,
        ended_ns=2,
        failure=Failure(cause=Cause.DATA_CORRUPT, message="shard 3"),
    )
    ledger.put(ledger.dataset_key, failed)

    assert ledger.find_stage_record(DataPrepRecord, ledger.dataset_key) == failed
    assert ledger.find_stage_record(DataPrepRecord, "absent.json") is None


def test_a_second_try_finds_its_own_request(ledger: Ledger) -> None:
    request = GateNodeRequest(stage=Stage.GATE_NODE, root="r", experiment="demo", config_digest="c", output="o", node="node-0")
    key = ledger.request_key(0, 0, "gate_node-node-0")

    ledger.put_request(key, request)
    ledger.put_request(key, request)

    assert ledger.find(GateNodeRequest, key) == request


# ------------------------------------------------------------------------------------------------ experiment


def test_an_unopened_experiment_is_named_with_those_that_are_there(opened_ledger: Ledger) -> None:
    other = Ledger(opened_ledger.store, "other")

    with pytest.raises(ConfigError, match="no experiment 'other'; experiments here: demo"):
        other.experiment()


def test_experiments_are_listed_once_they_are_opened(opened_ledger: Ledger) -> None:
    opened_ledger.store.put_new("experiments/half/dataset.json", b"x")

    assert list_experiments(opened_ledger.store) == ["demo"]


def test_the_recorded_configuration_is_the_one_that_was_given(opened_ledger: Ledger) -> None:
    assert opened_ledger.config() == Config()


def test_directives_extend_and_stop_and_the_last_word_counts(opened_ledger: Ledger) -> None:
    assert not opened_ledger.is_stop_requested()

    opened_ledger.put_directive(Directive(at_ns=1, reason="longer", segments=9))
    opened_ledger.put_directive(Directive(at_ns=2, reason="halt", is_stop=True))

    assert opened_ledger.is_stop_requested()
    assert opened_ledger.config().segments == 9

    opened_ledger.put_directive(Directive(at_ns=3, reason="go on", is_stop=False))

    assert not opened_ledger.is_stop_requested()
    assert [directive.at_ns for directive in opened_ledger.directives()] == [1, 2, 3]


# ------------------------------------------------------------------------------------------------ attempts and fencing


def test_whoever_opens_an_attempt_first_holds_its_token(ledger: Ledger) -> None:
    ledger.open_attempt(_attempt(0))

    with pytest.raises(KeyExists):
        ledger.open_attempt(dataclasses.replace(_attempt(0), run_id="late"))

    assert [opened.run_id for opened in ledger.attempts(0)] == ["r"]


def test_attempts_are_read_in_order_and_end_at_the_first_gap(ledger: Ledger) -> None:
    for attempt in (0, 1, 3):
        ledger.open_attempt(_attempt(attempt))

    assert [opened.attempt for opened in ledger.attempts(0)] == [0, 1]


def test_the_holder_of_the_token_is_left_in_peace(ledger: Ledger) -> None:
    ledger.open_attempt(_attempt(0))

    ledger.check_token(segment=0, attempt=0, run_index=0)


def test_a_newer_attempt_fences_the_older_one(ledger: Ledger) -> None:
    ledger.open_attempt(_attempt(0))
    ledger.open_attempt(_attempt(1))

    ledger.check_token(segment=0, attempt=1, run_index=0)
    with pytest.raises(Fenced, match="attempt 0 of segment 0 lost its token"):
        ledger.check_token(segment=0, attempt=0, run_index=0)


def test_a_closed_run_fences_its_last_attempt(ledger: Ledger) -> None:
    ledger.open_attempt(_attempt(0))
    ledger.put(ledger.close_key(0, 0), _close(0, Outcome.FAILED))

    with pytest.raises(Fenced, match="closed/00"):
        ledger.check_token(segment=0, attempt=0, run_index=0)


def test_a_segment_is_accepted_by_the_run_that_closed_it_so(ledger: Ledger) -> None:
    for run_index, outcome in enumerate((Outcome.FAILED, Outcome.ACCEPTED)):
        ledger.open_run(SegmentOpened(segment=0, run_index=run_index, run_id="r", opened_ns=1))
        assert ledger.accepted(0) is None
        ledger.put(ledger.close_key(0, run_index), _close(run_index, outcome))

    accepted = ledger.accepted(0)

    assert accepted is not None
    assert accepted.run_index == 1


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("probe_loss_nats", [1.5, 2, float("inf")], ids=["float", "whole number", "infinite"])
def test_a_reference_made_from_a_manifest_read_back_still_pins_it(ledger: Ledger, probe_loss_nats: float) -> None:
    written = _manifest(0, probe_loss_nats=probe_loss_nats)
    sha256 = ledger.put(ledger.manifest_key(written.name), written)

    [candidate] = ledger.candidates(0, 0)
    reference = ledger.ref(candidate)

    assert reference.manifest_sha256 == sha256
    assert ledger.manifest(reference) == candidate


def test_a_reference_refuses_a_manifest_that_changed(ledger: Ledger, root: str) -> None:
    ledger.put(ledger.manifest_key("0000-00-0000"), _manifest(0))
    reference = ledger.ref(_manifest(0, probe_loss_nats=9.0))

    with pytest.raises(DigestMismatch):
        ledger.manifest(reference)
    with pytest.raises(KeyMissing):
        ledger.manifest(dataclasses.replace(reference, name="0000-00-0007"))


def test_a_checkpoint_without_a_manifest_is_no_candidate(ledger: Ledger) -> None:
    ledger.store.put_new(f"{ledger.checkpoint_prefix('0000-00-0000')}/weights.safetensors", b"x")

    assert ledger.candidates(0, 0) == []
    assert ledger.validation("0000-00-0000") is None


def test_each_mark_is_a_record_of_its_own(ledger: Ledger) -> None:
    mark = CheckpointMark(checkpoint="0000-00-0000", reason="segment 0 closed", at_ns=1)
    ledger.put(ledger.mark_key("0000-00-0000", "promoted"), mark)

    assert ledger.mark("0000-00-0000", "promoted") == mark
    assert ledger.mark("0000-00-0000", "pruned") is None


# ------------------------------------------------------------------------------------------------ opening


def _open_experiment(store: FolderStore, *faults: str) -> None:
    mapping = config_text.to_mapping(Config())
    record = ExperimentRecord(
        name="demo", opened_ns=1, config=mapping, config_digest=codec.digest(mapping), faults=faults, versions={}
    )
    ledger = Ledger(store, "demo")
    ledger.put(ledger.experiment_key, record)


@pytest.mark.parametrize("faults", [(), ("kill:rank=0,step=1",)], ids=["none", "another fault"])
def test_no_outage_is_built_unless_one_was_asked_for(store: FolderStore, faults: tuple[str, ...]) -> None:
    _open_experiment(store, *faults)

    opened = open_ledger(store.root, "demo", settings=StorageConfig())

    assert not isinstance(opened.store._inner, OutageStore)  # type: ignore[attr-defined]
    assert (opened.fault_switch() is None) == (not faults)


def test_a_requested_outage_stands_between_the_ledger_and_the_store(store: FolderStore) -> None:
    _open_experiment(store, "storage-down:seconds=1")

    opened = open_ledger(store.root, "demo")

    assert isinstance(opened.store._inner, OutageStore)  # type: ignore[attr-defined]
    assert opened.config() == Config()


def test_opening_is_patient_also_where_the_calls_are_not(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    _open_experiment(store)
    failures = iter([StorageUnavailable("away"), StorageUnavailable("away")])

    class Flaky(FolderStore):
        def exists(self, key: str) -> bool:
            if (failure := next(failures, None)) is not None:
                raise failure
            return super().exists(key)

    monkeypatch.setattr("prunella.ledger.open_store", Flaky)

    opened = open_ledger(store.root, "demo", settings=StorageConfig(retry_s=0.0))

    assert opened.config() == Config()
