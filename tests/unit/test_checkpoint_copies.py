"""A machine does not download what it has just uploaded, keeps little of it, and believes none of it."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from buckets import moto_bucket, set_in_environment
from fault_proxy import FLIP_ANSWER, FLIP_REQUEST, Schedule, fault_proxy
from prunella import checkpoints
from prunella.checkpoint_validation.stage import run as validate
from prunella.faults import flip_byte
from prunella.ledger import Ledger, open_ledger
from prunella.records import CheckpointRef, Stage, ValidateRequest, ValidationRecord, Verdict
from prunella.storage import Content
from unit import checkpoint_job as tiny


@dataclass(frozen=True, kw_only=True)
class Watched:
    """An experiment in a bucket, and every request that its server saw."""

    ledger: Ledger
    schedule: Schedule
    scratch: Path

    def save(self, *, steps: int, keep_local: int) -> list[CheckpointRef]:
        """A checkpoint every second step; the references, oldest first."""
        config = tiny.with_checkpoint(tiny.CONFIG, keep_local=keep_local)
        refs: list[CheckpointRef] = tiny.make_checkpoints(self.ledger, self.scratch, steps=steps, config=config)
        self.schedule.requests.clear()
        return refs

    def flip(self, fault: str, *, method: str) -> None:
        """Do this once, in the middle of the next file of tensors that is asked for by that method."""
        faults = iter([fault])

        def draw(asked: str, path: str) -> tuple[str, float]:
            return next(faults, "") if asked == method and path.endswith(".safetensors") else "", 0.5

        self.schedule.draw = draw  # type: ignore[method-assign]

    def keys(self, ref: CheckpointRef) -> list[str]:
        return [entry.key for entry in self.ledger.manifest(ref).files]

    def downloads(self, ref: CheckpointRef) -> list[str]:
        """Those of a checkpoint's files that were asked for since the save, once for each time."""
        asked = [request for request in self.schedule.requests if request.startswith("GET ")]
        return [key for key in self.keys(ref) for request in asked if request.endswith(key)]

    def validate(self, ref: CheckpointRef) -> ValidationRecord:
        request = ValidateRequest(
            stage=Stage.CHECKPOINT_VALIDATION, root=self.ledger.store.root, experiment=self.ledger.name, config_digest="c" * 64,
            output="unused", candidate=ref, previous=None, dataset=tiny.DATASET,
        )  # fmt: skip
        return validate(tiny.CONFIG, request)

    def resume(self, ref: CheckpointRef) -> Any:
        """A model of another seed that loaded the checkpoint."""
        run = tiny.Run(seed=5)
        checkpoints.load(self.ledger, ref, run.model, run.optimizer)
        return run

    def has_copies(self, ref: CheckpointRef) -> bool:
        """Whether this machine has one of every file; forgets them."""
        dropped = [self.ledger.store.drop_copy(key) for key in self.keys(ref)]
        assert len(set(dropped)) == 1, dropped
        return dropped[0]


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path / "scratch"))
    with moto_bucket(tmp_path.name) as bucket, fault_proxy(bucket.environment["AWS_ENDPOINT_URL_S3"], 0) as (address, schedule):
        schedule.is_off = True
        with set_in_environment({**bucket.environment, "AWS_ENDPOINT_URL_S3": address}):
            yield Watched(ledger=tiny.make_experiment(bucket.root), schedule=schedule, scratch=tmp_path / "scratch")


@pytest.mark.parametrize("keep_local", [2, 0], ids=["kept", "not kept"])
def test_validation_and_resume_on_the_machine_that_saved_download_nothing_where_copies_are_kept(
    watched: Watched, keep_local: int
) -> None:
    *_, ref = watched.save(steps=4, keep_local=keep_local)

    record = watched.validate(ref)
    resumed = watched.resume(ref)

    assert record.verdict is Verdict.ACCEPTED, record.failure
    assert resumed.digest(4) == record.digest
    assert watched.downloads(ref) == ([] if keep_local else watched.keys(ref))


def test_a_copy_that_was_damaged_on_disk_is_fetched_from_the_bucket_and_condemns_no_checkpoint(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    [ref] = watched.save(steps=2, keep_local=2)
    for key in watched.keys(ref):
        copy = watched.ledger.store.local_path(key)
        content = bytearray(copy.read_bytes())
        content[len(content) // 2] ^= 0x10
        copy.write_bytes(content)

    record = watched.validate(ref)

    assert record.verdict is Verdict.ACCEPTED, record.failure
    assert watched.downloads(ref) == watched.keys(ref)
    assert caplog.text.count("damaged_copy_dropped") == len(watched.keys(ref))


def test_a_sound_copy_does_not_hide_that_the_object_was_damaged(watched: Watched) -> None:
    [ref] = watched.save(steps=2, keep_local=2)
    victim = next(key for key in watched.keys(ref) if key.endswith(".safetensors"))
    flip_byte(watched.ledger.store, victim)

    record = watched.validate(ref)

    assert record.verdict is Verdict.REJECTED
    assert record.failure is not None
    assert f"{victim} is damaged" in record.failure.message


def test_a_checkpoint_is_verified_by_local_copies_only_if_the_bucket_holds_the_same_bytes(watched: Watched) -> None:
    watched.flip(FLIP_REQUEST, method="PUT")
    [ref] = watched.save(steps=2, keep_local=2)

    record = watched.validate(ref)
    is_local = watched.downloads(ref) == [] and watched.has_copies(ref)
    from_bucket = watched.resume(ref)

    assert record.verdict is Verdict.ACCEPTED, record.failure
    assert is_local
    assert from_bucket.digest(2) == record.digest
    assert watched.downloads(ref) == watched.keys(ref)


def test_a_byte_that_flips_on_its_way_down_condemns_no_checkpoint(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    [ref] = watched.save(steps=2, keep_local=0)
    watched.flip(FLIP_ANSWER, method="GET")

    record = watched.validate(ref)

    assert record.verdict is Verdict.ACCEPTED, record.failure
    assert caplog.text.count("damaged_copy_dropped") == 1


def test_a_checkpoint_larger_than_all_copies_may_be_is_read_whole(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    [ref] = watched.save(steps=2, keep_local=0)
    monkeypatch.setenv("PRUNELLA_CACHE_BYTES", "1")
    tight = dataclasses.replace(watched, ledger=open_ledger(watched.ledger.store.root, tiny.EXPERIMENT))

    record = tight.validate(ref)
    resumed = tight.resume(ref)

    assert record.verdict is Verdict.ACCEPTED, record.failure
    assert resumed.digest(2) == record.digest
    assert list(watched.scratch.glob("checkpoint-*")) == []


def test_a_file_damaged_on_its_way_to_the_reader_is_fetched_once_more(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    [ref] = watched.save(steps=2, keep_local=0)
    record = watched.validate(ref)
    store, garbage = watched.ledger.store, iter([b"garbage"])
    place = store.place

    def place_garbage(key: str, path: Path) -> Content | None:
        if (content := next(garbage, None)) is None:
            return place(key, path)
        path.write_bytes(content)
        return Content(size_bytes=len(content), sha256="0" * 64)

    monkeypatch.setattr(store, "place", place_garbage)

    resumed = watched.resume(ref)

    assert next(garbage, None) is None
    assert resumed.digest(2) == record.digest


def test_copies_of_the_newest_checkpoints_are_kept_and_of_no_others(watched: Watched) -> None:
    refs = watched.save(steps=8, keep_local=2)

    assert [watched.has_copies(ref) for ref in refs] == [False, False, True, True]


def test_copies_go_with_the_checkpoint_that_retention_released(watched: Watched) -> None:
    refs = watched.save(steps=4, keep_local=2)
    for ref in refs:
        watched.validate(ref)

    released = checkpoints.prune(watched.ledger, keep_last=1, keep_every=0, is_dry_run=False)

    assert [status.ref for status in released] == refs[:1]
    assert [watched.has_copies(ref) for ref in refs] == [False, True]
