"""Only a candidate that is whole, finite, new and computes what it computed when saved is verified."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunella import checkpoints
from prunella.checkpoint_validation.stage import run
from prunella.config import Config
from prunella.data.manifest import manifest_key
from prunella.errors import Cause, ConfigError, DataCorrupt
from prunella.faults import flip_byte
from prunella.ledger import Ledger
from prunella.records import CheckpointRef, Part, Stage, ValidateRequest, ValidationRecord, Verdict
from unit import checkpoint_job as tiny


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return tiny.make_experiment(tmp_path / "root")


def _validate(
    ledger: Ledger, candidate: CheckpointRef, previous: CheckpointRef | None = None, config: Config | None = None
) -> ValidationRecord:
    request = ValidateRequest(
        stage=Stage.CHECKPOINT_VALIDATION, root=ledger.store.root, experiment=ledger.name, config_digest="c" * 64,
        output="unused", candidate=candidate, previous=previous, dataset=tiny.DATASET,
    )  # fmt: skip
    return run(tiny.CONFIG if config is None else config, request)


def _failed(record: ValidationRecord) -> list[str]:
    return [check.name for check in record.checks if not check.is_passed]


def _save_changed(
    ledger: Ledger, scratch: Path, change: Callable[[Any], None], *, steps: tuple[int, ...] = (1, 2)
) -> list[CheckpointRef]:
    """Save a trained run at the first of `steps`, change it, and save it at each of the others without more training."""
    trained = tiny.Run()
    trained.train(1)
    writer = checkpoints.CheckpointWriter(ledger, tiny.request(ledger), tiny.CONFIG, rank=0, world_size=1, scratch=scratch)
    for step in steps:
        if step != steps[0]:
            change(trained)
        tiny.save(ledger, writer, trained, step)
    writer.wait()
    return [ledger.ref(manifest) for manifest in ledger.candidates(0, 0)]


def _weights(trained: Any) -> list[torch.Tensor]:
    return [parameter.data for parameter in trained.model.parameters()]


def test_a_sound_candidate_is_verified_with_its_digest_beside_it(ledger: Ledger, tmp_path: Path) -> None:
    [ref] = tiny.make_checkpoints(ledger, tmp_path)

    record = _validate(ledger, ref)

    assert record.verdict is Verdict.ACCEPTED, record.failure
    assert [check.name for check in record.checks] == [
        "manifest", "complete", "digests", "loader_state", "readable", "world_size", "configuration", "finite",
        "parameter_norm", "differs", "probe_loss",
    ]  # fmt: skip
    assert record.digest == checkpoints.logical_digest(*checkpoints.read_full(ledger, ref))
    assert [span.part for span in record.spans] == [Part.VALIDATION]
    assert ledger.validation(ref.name) == record
    newest = checkpoints.newest_verified(ledger)
    assert newest is not None
    assert newest.ref == ref


def test_the_next_candidate_is_verified_against_the_one_before(ledger: Ledger, tmp_path: Path) -> None:
    first, second = tiny.make_checkpoints(ledger, tmp_path, steps=4)
    _validate(ledger, first)

    record = _validate(ledger, second, previous=first)

    assert record.verdict is Verdict.ACCEPTED, record.failure
    assert "of step 2" in next(check.reference for check in record.checks if check.name == "differs")


def test_the_first_verdict_stands(ledger: Ledger, tmp_path: Path) -> None:
    [ref] = tiny.make_checkpoints(ledger, tmp_path)
    first = _validate(ledger, ref)
    flip_byte(ledger.store, ledger.manifest(ref).files[0].key)

    assert _validate(ledger, ref) == first


def test_a_flipped_byte_is_rejected_and_the_evidence_stays(ledger: Ledger, tmp_path: Path) -> None:
    [ref] = tiny.make_checkpoints(ledger, tmp_path)
    key = ledger.manifest(ref).files[0].key
    flip_byte(ledger.store, key)

    record = _validate(ledger, ref)

    assert (record.verdict, _failed(record), record.digest) == (Verdict.REJECTED, ["digests"], None)
    assert record.failure is not None
    assert record.failure.cause is Cause.CHECKPOINT_INVALID
    assert key in record.failure.message
    assert ledger.store.exists(key)
    assert ledger.validation(ref.name) == record


def test_a_truncated_file_is_rejected(ledger: Ledger, tmp_path: Path) -> None:
    [ref] = tiny.make_checkpoints(ledger, tmp_path)
    path = ledger.store.local_path(ledger.manifest(ref).files[0].key)
    path.write_bytes(path.read_bytes()[:-8])

    assert _failed(_validate(ledger, ref)) == ["complete"]


def test_a_missing_file_is_rejected(ledger: Ledger, tmp_path: Path) -> None:
    [ref] = tiny.make_checkpoints(ledger, tmp_path)
    ledger.store.delete(ledger.manifest(ref).files[0].key)

    record = _validate(ledger, ref)

    assert _failed(record) == ["complete"]
    assert record.failure is not None
    assert "lacks 1 of 2 files" in record.failure.message


def test_a_manifest_that_is_not_the_one_referred_to_is_rejected(ledger: Ledger, tmp_path: Path) -> None:
    [ref] = tiny.make_checkpoints(ledger, tmp_path)

    assert _failed(_validate(ledger, dataclasses.replace(ref, manifest_sha256="0" * 64))) == ["manifest"]


def test_a_candidate_of_another_configuration_is_rejected(ledger: Ledger, tmp_path: Path) -> None:
    [ref] = tiny.make_checkpoints(ledger, tmp_path)
    wider = dataclasses.replace(tiny.CONFIG, model=dataclasses.replace(tiny.CONFIG.model, ffn_dim=32))

    assert _failed(_validate(ledger, ref, config=wider)) == ["configuration"]


def test_a_nan_in_a_moment_is_rejected_and_named(ledger: Ledger, tmp_path: Path) -> None:
    def poison(trained: Any) -> None:
        trained.optimizer.state[trained.model.head.weight]["exp_avg"][0, 0] = float("nan")

    _, ref = _save_changed(ledger, tmp_path, poison)

    record = _validate(ledger, ref)

    assert _failed(record) == ["finite"]
    assert record.failure is not None
    assert "optim.head.weight.exp_avg" in record.failure.message


def test_a_writer_that_saves_the_same_weights_for_ever_is_caught(ledger: Ledger, tmp_path: Path) -> None:
    first, second = _save_changed(ledger, tmp_path, lambda trained: None)
    _validate(ledger, first)

    assert _failed(_validate(ledger, second, previous=first)) == ["differs"]


def test_a_jump_of_the_parameter_norm_is_rejected(ledger: Ledger, tmp_path: Path) -> None:
    def grow(trained: Any) -> None:
        torch._foreach_mul_(_weights(trained), 3.0)

    first, second = _save_changed(ledger, tmp_path, grow)
    _validate(ledger, first)

    assert _failed(_validate(ledger, second, previous=first)) == ["parameter_norm"]


def test_weights_that_do_not_compute_the_recorded_loss_are_rejected(ledger: Ledger, tmp_path: Path) -> None:
    trained = tiny.Run()
    trained.train(1)
    writer = checkpoints.CheckpointWriter(ledger, tiny.request(ledger), tiny.CONFIG, rank=0, world_size=1, scratch=tmp_path)
    loss_nats = tiny.probe_loss(ledger, trained)
    writer.save(1, trained.model, trained.optimizer, trained.state(1), loss_nats * 1.001, None)
    writer.wait()

    assert _failed(_validate(ledger, ledger.ref(ledger.candidates(0, 0)[0]))) == ["probe_loss"]


def test_a_damaged_held_out_set_judges_nobody(ledger: Ledger, tmp_path: Path) -> None:
    [ref] = tiny.make_checkpoints(ledger, tmp_path)
    ledger.store.delete(manifest_key(tiny.DATASET))

    with pytest.raises(DataCorrupt):
        _validate(ledger, ref)
    assert ledger.validation(ref.name) is None


def test_a_previous_checkpoint_that_is_not_verified_is_an_error_of_the_request(ledger: Ledger, tmp_path: Path) -> None:
    first, second = tiny.make_checkpoints(ledger, tmp_path, steps=4)

    with pytest.raises(ConfigError, match="is not a verified one"):
        _validate(ledger, second, previous=first)
