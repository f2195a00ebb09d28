"""Saves are true to their step, loads are exact or refused, nothing foreign is trusted (FIELD 6: R1, R2, R3, R12, R13)."""

import dataclasses
import hashlib
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunella import checkpoint_writer, checkpoints, faults
from prunella.checkpoint_agreement import agree
from prunella.checkpoint_state import stage
from prunella.checkpoint_validation.stage import run as validate
from prunella.config import Config, OnSaveFailure
from prunella.errors import CheckpointInvalid, Fenced, PrunellaError, StorageFull
from prunella.faults import FaultSwitch, flip_byte
from prunella.ledger import Ledger
from prunella.records import CheckpointManifest, CheckpointRef, FileEntry, Stage, ValidateRequest, Verdict, to_bytes
from prunella.storage import Content, FolderStore
from unit import checkpoint_job as tiny


@dataclasses.dataclass(frozen=True)
class Job:
    """What two ranks did, and the ledgers they did it in."""

    two: Ledger
    one: Ledger
    found: dict[str, Any]
    saved_by_one: str

    def ref(self, index: int) -> CheckpointRef:
        return self.two.ref(self.two.candidates(0, 0)[index])


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    root = tmp_path_factory.mktemp("job")
    two, one = tiny.make_experiment(root / "two"), tiny.make_experiment(root / "one")
    [ref] = tiny.make_checkpoints(one, root / "scratch")
    saved_by_one = checkpoints.logical_digest(*checkpoints.read_full(one, ref))
    return Job(two=two, one=one, found=tiny.run_job(root), saved_by_one=saved_by_one)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return tiny.make_experiment(tmp_path / "root")


@pytest.fixture
def ref(ledger: Ledger, tmp_path: Path) -> CheckpointRef:
    [ref] = tiny.make_checkpoints(ledger, tmp_path)
    return ref


def _writer(ledger: Ledger, scratch: Path, config: Config | None = None, **options: Any) -> checkpoints.CheckpointWriter:
    chosen = tiny.CONFIG if config is None else config
    return checkpoints.CheckpointWriter(ledger, tiny.request(ledger), chosen, rank=0, world_size=1, scratch=scratch, **options)


def _shard(ledger: Ledger, ref: CheckpointRef) -> FileEntry:
    return next(entry for entry in ledger.manifest(ref).files if entry.key.endswith(".safetensors"))


def _load(ledger: Ledger, ref: CheckpointRef, config: Config | None = None) -> checkpoints.TrainingState:
    run = tiny.Run(tiny.CONFIG if config is None else config, seed=5)
    return checkpoints.load(ledger, ref, run.model, run.optimizer)


def _rewritten(ledger: Ledger, ref: CheckpointRef, **changes: Any) -> CheckpointRef:
    """A reference to another manifest of the same name: what a hand that may write anything could leave."""
    manifest = dataclasses.replace(ledger.manifest(ref), **changes)
    ledger.store.delete(ledger.manifest_key(ref.name))
    ledger.put(ledger.manifest_key(ref.name), manifest)
    return ledger.ref(manifest)


# ------------------------------------------------------------------------------------------------ two ranks


def test_a_save_holds_the_weights_of_its_step_although_training_went_on(job: Job) -> None:
    saved = [checkpoints.logical_digest(*checkpoints.read_full(job.two, job.ref(index))) for index in (0, 1)]

    assert saved == [job.found["digest_2"][0], job.found["digest_4"][0]]
    assert saved[0] != saved[1]


def test_one_process_loads_what_two_ranks_saved(job: Job) -> None:
    run = tiny.Run(seed=5)

    state = checkpoints.load(job.two, job.ref(1), run.model, run.optimizer)

    assert run.digest(4) == job.found["digest_4"][0]
    assert (state.step, state.batch, state.world_size) == (4, 4, 2)
    assert state.detector == {"losses": (5.5, 5.25), "median": 5.375}


def test_two_ranks_load_what_one_process_saved(job: Job) -> None:
    assert job.found["loaded_from_one"] == [job.saved_by_one] * 2


def test_resume_is_bitwise_equal_to_the_unbroken_run_also_after_two_resumes(job: Job) -> None:
    assert job.found["resumed_digest_4"] == job.found["digest_4"]


def test_random_state_comes_back_for_each_rank_and_only_at_the_same_world_size(job: Job) -> None:
    _, state = checkpoints.read_full(job.two, job.ref(1))
    drawn = []

    for rank in (0, 1):
        assert checkpoints.restore_rng(state, rank=rank, world_size=2)
        drawn.append(torch.rand(4).tolist())

    assert drawn == job.found["random"]
    assert drawn[0] != drawn[1]
    assert job.found["rng_at_other_size"] == [False, False]


def test_a_manifest_names_its_shards_and_the_step_records_since_the_one_before(job: Job) -> None:
    first, second = job.two.candidates(0, 0)

    assert (first.name, second.name) == ("0000-00-0000", "0000-00-0001")
    assert len([entry for entry in first.files if entry.key.endswith(".safetensors")]) == 2
    assert job.found["durable_step"] == [4, 4]
    chunks = [job.two.store.get(manifest.metrics[0].key).decode() for manifest in (first, second)]
    assert chunks == ['{"step": 1}\n{"step": 2}\n', '{"step": 3}\n{"step": 4}\n']


def test_validation_in_one_process_accepts_what_two_ranks_saved(job: Job) -> None:
    request = ValidateRequest(
        stage=Stage.CHECKPOINT_VALIDATION, root=job.two.store.root, experiment=tiny.EXPERIMENT, config_digest="c" * 64,
        output="unused", candidate=job.ref(1), dataset=tiny.DATASET,
    )  # fmt: skip

    record = validate(tiny.CONFIG, request)

    assert record.verdict is Verdict.ACCEPTED, record.failure
    assert record.digest == job.found["digest_4"][0]


def test_a_save_that_fails_on_one_rank_fails_on_all_and_names_it(job: Job) -> None:
    assert job.found["failed_save"][0] == job.found["failed_save"][1]
    assert "NotADirectoryError" in job.found["failed_save"][0]
    assert job.found["failed_save"][0].endswith("(rank 1)")
    assert len(job.two.candidates(0, 1)) == 1


def test_a_damaged_file_stops_every_rank_although_one_of_them_found_it(job: Job) -> None:
    assert job.found["failed_load"][0] == job.found["failed_load"][1]
    assert job.found["failed_load"][0].startswith("CheckpointInvalid")
    assert "is damaged" in job.found["failed_load"][0]


# ------------------------------------------------------------------------------------------------ the digest


def test_the_digest_covers_counters_and_bytes_and_not_who_saved_them(ledger: Ledger, ref: CheckpointRef) -> None:
    tensors, state = checkpoints.read_full(ledger, ref)
    digest = checkpoints.logical_digest(tensors, state)
    flipped = {**tensors, "optim.head.weight.exp_avg": tensors["optim.head.weight.exp_avg"].neg()}

    assert checkpoints.logical_digest(tensors, dataclasses.replace(state, world_size=64, rng=())) == digest
    assert checkpoints.logical_digest(dict(reversed(tensors.items())), state) == digest
    for other in ({"step": 3}, {"tokens": 1}, {"batch": 1}):
        assert checkpoints.logical_digest(tensors, dataclasses.replace(state, **other)) != digest
    assert checkpoints.logical_digest(flipped, state) != digest
    assert checkpoints.parameter_digest(flipped) == checkpoints.parameter_digest(tensors)


def test_the_digest_covers_moments_and_routing_buffers(ledger: Ledger, ref: CheckpointRef) -> None:
    names = checkpoints.read_full(ledger, ref)[0].keys()

    assert {"model.layers.1.moe.router.expert_bias_E", "model.layers.1.moe.router.load_fraction_E"} <= names
    assert {"optim.head.weight.exp_avg", "optim.head.weight.exp_avg_sq", "optim.head.weight.step"} <= names


def test_the_probe_changes_neither_routing_nor_random_state_nor_mode(ledger: Ledger) -> None:
    run = tiny.Run()
    before, random = run.digest(0), torch.get_rng_state()

    losses = {tiny.probe_loss(ledger, run) for _ in range(2)}

    assert len(losses) == 1
    assert run.digest(0) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert run.model.training


def test_a_staged_tensor_does_not_follow_its_source() -> None:
    source = torch.ones(3)

    copy = stage({"x": source})["x"]
    source.zero_()

    assert copy.tolist() == [1.0, 1.0, 1.0]


# ------------------------------------------------------------------------------------------------ damage


def test_one_flipped_byte_is_refused_with_expected_and_found(ledger: Ledger, ref: CheckpointRef) -> None:
    shard = _shard(ledger, ref)
    flip_byte(ledger.store, shard.key)

    with pytest.raises(CheckpointInvalid, match=f"{shard.key} is damaged: expected .*{shard.sha256}, found .*roll back"):
        _load(ledger, ref)
    with pytest.raises(CheckpointInvalid, match="is damaged"):
        checkpoints.read_full(ledger, ref)


def test_a_truncated_file_is_refused(ledger: Ledger, ref: CheckpointRef) -> None:
    path = ledger.store.local_path(_shard(ledger, ref).key)
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(CheckpointInvalid, match="is damaged: expected"):
        _load(ledger, ref)


def test_a_missing_shard_is_refused_and_named(ledger: Ledger, ref: CheckpointRef) -> None:
    shard = _shard(ledger, ref)
    ledger.store.delete(shard.key)

    with pytest.raises(CheckpointInvalid, match=f"lacks 1 of 2 files: {shard.key}"):
        _load(ledger, ref)


def test_a_manifest_that_forgot_a_shard_is_refused(job: Job, tmp_path: Path) -> None:
    ledger = tiny.make_experiment(tmp_path)
    manifest = job.two.candidates(0, 0)[0]
    kept = [entry for entry in manifest.files if "shard-00001" not in entry.key]
    for entry in kept:
        ledger.store.put_new_file(entry.key, job.two.store.local_path(entry.key))
    ledger.put(ledger.manifest_key(manifest.name), dataclasses.replace(manifest, files=tuple(kept)))

    with pytest.raises(CheckpointInvalid, match=r"is incomplete|does not fit"):
        _load(ledger, ledger.ref(dataclasses.replace(manifest, files=tuple(kept))))


def test_a_changed_manifest_is_refused(ledger: Ledger, ref: CheckpointRef) -> None:
    _rewritten(ledger, ref, step=3)

    with pytest.raises(CheckpointInvalid, match=r"its manifest cannot be read: .*expected sha256"):
        _load(ledger, ref)


# ------------------------------------------------------------------------------------------------ hostile and foreign


class _Hostile:
    """Runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.target,))


def test_planted_pickles_are_never_run(ledger: Ledger, ref: CheckpointRef, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    hostile = pickle.dumps(_Hostile(marker))
    folder = ledger.store.local_path(_shard(ledger, ref).key).parent
    for name in (".metadata", "__0_0.distcp", "hostile.safetensors", "model.safetensors.index.json"):
        (folder / name).write_bytes(hostile)

    _load(ledger, ref)
    checkpoints.read_full(ledger, ref)

    assert not marker.exists()
    pickle.loads(hostile)
    assert marker.exists()  # the trap does work


def test_a_pickle_in_the_place_of_a_shard_is_refused_even_with_a_matching_digest(
    ledger: Ledger, ref: CheckpointRef, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    hostile = pickle.dumps(_Hostile(marker))
    shard = _shard(ledger, ref)
    ledger.store.local_path(shard.key).write_bytes(hostile)
    forged = FileEntry(key=shard.key, sha256=hashlib.sha256(hostile).hexdigest(), size_bytes=len(hostile))
    rest = [entry for entry in ledger.manifest(ref).files if entry != shard]

    with pytest.raises(CheckpointInvalid, match="not readable as safetensors"):
        _load(ledger, _rewritten(ledger, ref, files=(forged, *rest)))

    assert not marker.exists()


def test_a_checkpoint_of_another_configuration_is_one_clear_error(ledger: Ledger, ref: CheckpointRef) -> None:
    wider = dataclasses.replace(tiny.CONFIG, model=dataclasses.replace(tiny.CONFIG.model, ffn_dim=32))

    with pytest.raises(CheckpointInvalid, match=r"does not fit this configuration: \d+ tensors differ, first .* expected"):
        _load(ledger, ref, wider)


def test_a_checkpoint_with_fewer_layers_is_one_clear_error(ledger: Ledger, ref: CheckpointRef) -> None:
    deeper = dataclasses.replace(tiny.CONFIG, model=dataclasses.replace(tiny.CONFIG.model, n_layers=3))

    with pytest.raises(CheckpointInvalid, match="found none"):
        _load(ledger, ref, deeper)


def test_a_checkpoint_of_another_experiment_is_refused(ledger: Ledger, ref: CheckpointRef) -> None:
    with pytest.raises(CheckpointInvalid, match="expected one of experiment 'tiny', found one of 'other'"):
        _load(ledger, _rewritten(ledger, ref, experiment="other"))


def test_a_checkpoint_written_under_another_configuration_is_refused(ledger: Ledger, ref: CheckpointRef) -> None:
    with pytest.raises(CheckpointInvalid, match="foreign: expected one written under the configuration of this experiment"):
        _load(ledger, _rewritten(ledger, ref, config_digest="d" * 64))


def test_missing_loader_state_is_an_error(ledger: Ledger, ref: CheckpointRef) -> None:
    with pytest.raises(CheckpointInvalid, match="has no loader state"):
        _load(ledger, _rewritten(ledger, ref, files=(_shard(ledger, ref),)))


@pytest.mark.parametrize("claim", [{"dataset": "another"}, {"seed": 12}, {"step": 7}, {"rng": ()}])
def test_foreign_loader_state_is_an_error(ledger: Ledger, ref: CheckpointRef, claim: dict[str, Any]) -> None:
    _, state = checkpoints.read_full(ledger, ref)
    data = to_bytes(dataclasses.replace(state, **claim))
    key = f"{ledger.checkpoint_prefix(ref.name)}/forged-state.json"
    ledger.store.put_new(key, data)
    entry = FileEntry(key=key, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))

    with pytest.raises(CheckpointInvalid, match="foreign loader state: expected"):
        _load(ledger, _rewritten(ledger, ref, files=(_shard(ledger, ref), entry)))


def test_loader_state_that_is_no_record_is_an_error(ledger: Ledger, ref: CheckpointRef) -> None:
    key = f"{ledger.checkpoint_prefix(ref.name)}/forged-state.json"
    ledger.store.put_new(key, b"{}")
    entry = FileEntry(key=key, sha256=hashlib.sha256(b"{}").hexdigest(), size_bytes=2)

    with pytest.raises(CheckpointInvalid, match="its loader state cannot be read"):
        _load(ledger, _rewritten(ledger, ref, files=(_shard(ledger, ref), entry)))


# ------------------------------------------------------------------------------------------------ the commit (R1, R13)


def test_without_the_token_nothing_is_committed(ledger: Ledger, tmp_path: Path) -> None:
    run, writer = tiny.Run(), _writer(ledger, tmp_path)
    run.train(1)
    tiny.open_attempt(ledger, 1)

    tiny.save(ledger, writer, run, 1)

    with pytest.raises(Fenced):
        writer.wait()
    assert ledger.candidates(0, 0) == []
    assert ledger.store.list(ledger.checkpoint_prefix("0000-00-0000")) != []  # files without a manifest are no checkpoint
    assert writer.durable_step == 0


def test_fencing_is_never_only_a_warning(ledger: Ledger, tmp_path: Path) -> None:
    run, writer = tiny.Run(), _writer(ledger, tmp_path, tiny.with_checkpoint(tiny.CONFIG, on_save_failure=OnSaveFailure.WARN))
    run.train(1)
    tiny.open_attempt(ledger, 1)

    tiny.save(ledger, writer, run, 1)

    with pytest.raises(Fenced):
        writer.wait()


def test_training_waits_for_the_save_only_when_the_bound_on_unsaved_steps_is_reached(ledger: Ledger, tmp_path: Path) -> None:
    run, writer = tiny.Run(), _writer(ledger, tmp_path)
    for step in (1, 2):
        run.train(step)
    tiny.save(ledger, writer, run, 2)

    writer.wait_if_needed(2)
    assert writer.durable_step == 0

    writer.wait_if_needed(3)
    assert writer.durable_step == 2
    assert [manifest.step for manifest in ledger.candidates(0, 0)] == [2]


class _Slow(FolderStore):
    """A store that begins a file only after `pieces` of something else, each once somebody has heard of the one before, and
    after `stuck_s` in which nothing moves."""

    def __init__(self, root: str, *, pieces: int = 0, stuck_s: float = 0.0) -> None:
        super().__init__(root)
        self._pieces, self._stuck_s = pieces, stuck_s
        self.is_heard = threading.Event()

    def put_new_file(self, key: str, path: Path, *, keep_copy: bool = False) -> Content:
        for _ in range(self._pieces):
            self.moves += 1
            assert self.is_heard.wait(30.0)
            self.is_heard.clear()
        threading.Event().wait(self._stuck_s)
        return super().put_new_file(key, path, keep_copy=keep_copy)


def _signs_of_a_save(store: _Slow, ledger: Ledger, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What whoever waits for the save of step 1 in this store is told."""
    monkeypatch.setattr(checkpoint_writer, "LOOK_S", 0.01)
    signs: list[bool] = []

    def hear(is_agreeing: bool) -> None:
        signs.append(is_agreeing)
        store.is_heard.set()

    run, writer = tiny.Run(), _writer(Ledger(store, ledger.name), scratch, on_sign=hear)
    run.train(1)
    tiny.save(ledger, writer, run, 1)
    writer.wait()
    assert writer.durable_step == 1
    return signs


def test_whoever_waits_for_a_slow_save_hears_of_each_move(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _Slow(ledger.store.root, pieces=5)

    signs = _signs_of_a_save(store, ledger, tmp_path, monkeypatch)

    assert len(signs) >= 2 * 5  # two files: the shard, and the loader's state


def test_whoever_waits_for_a_save_that_is_stuck_hears_nothing(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _Slow(ledger.store.root, stuck_s=0.5)

    signs = _signs_of_a_save(store, ledger, tmp_path, monkeypatch)

    assert len(signs) < 10  # of a hundred looks; a sign for each turn of the save remains


def test_whoever_waits_for_a_save_hears_that_it_is_up_to_the_other_ranks(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_heard = threading.Event()

    def agree_late(group: Any, work: Callable[[], Any]) -> list[Any]:
        answers = agree(group, work)
        assert is_heard.wait(30.0), "nobody heard that this rank has done its part"
        return answers

    monkeypatch.setattr(checkpoint_writer, "LOOK_S", 0.01)
    monkeypatch.setattr(checkpoint_writer, "agree", agree_late)
    run, writer = tiny.Run(), _writer(ledger, tmp_path, on_sign=lambda is_agreeing: is_heard.set() if is_agreeing else None)
    run.train(1)
    tiny.save(ledger, writer, run, 1)

    writer.wait()

    assert writer.durable_step == 1


def test_closing_waits_for_a_slow_save_and_hears_of_it_too(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_writer, "LOOK_S", 0.01)
    store = _Slow(ledger.store.root, pieces=1)
    run, writer = tiny.Run(), _writer(Ledger(store, ledger.name), tmp_path, on_sign=lambda is_agreeing: store.is_heard.set())
    run.train(1)
    tiny.save(ledger, writer, run, 1)

    writer.close()

    assert [manifest.step for manifest in ledger.candidates(0, 0)] == [1]


class _FullFor(FolderStore):
    """A store that has no room for the first `times` files."""

    def __init__(self, root: str, times: int) -> None:
        super().__init__(root)
        self.times = times

    def put_new_file(self, key: str, path: Path, *, keep_copy: bool = False) -> Content:
        if self.times > 0:
            self.times -= 1
            raise StorageFull(f"no room for {key}")
        return super().put_new_file(key, path, keep_copy=keep_copy)


def _full(ledger: Ledger, times: int) -> Ledger:
    return Ledger(_FullFor(ledger.store.root, times), ledger.name)


def _with(choice: OnSaveFailure, **changes: Any) -> Config:
    config = tiny.with_checkpoint(tiny.CONFIG, on_save_failure=choice, **changes)
    patient = dataclasses.replace(config.storage, max_delay_s=0.0)
    return dataclasses.replace(config, storage=patient)


def test_a_failed_save_is_fatal_by_default(ledger: Ledger, tmp_path: Path) -> None:
    run, writer = tiny.Run(), _writer(_full(ledger, 1), tmp_path)
    run.train(1)

    tiny.save(ledger, writer, run, 1)

    with pytest.raises(StorageFull, match="no room"):
        writer.wait()


def test_a_failed_save_is_retried_where_asked(ledger: Ledger, tmp_path: Path) -> None:
    run, writer = tiny.Run(), _writer(_full(ledger, 2), tmp_path, _with(OnSaveFailure.RETRY))
    run.train(1)

    tiny.save(ledger, writer, run, 1)
    writer.wait()

    assert writer.durable_step == 1
    assert [manifest.name for manifest in ledger.candidates(0, 0)] == ["0000-00-0000"]


def test_retries_are_bounded(ledger: Ledger, tmp_path: Path) -> None:
    run, writer = tiny.Run(), _writer(_full(ledger, 3), tmp_path, _with(OnSaveFailure.RETRY))
    run.train(1)

    tiny.save(ledger, writer, run, 1)

    with pytest.raises(StorageFull):
        writer.wait()


def test_a_failed_save_may_be_a_warning_until_the_bound_on_unsaved_steps(ledger: Ledger, tmp_path: Path) -> None:
    full = _full(ledger, 1)
    run, writer = tiny.Run(), _writer(full, tmp_path, _with(OnSaveFailure.WARN, max_unsaved_steps=3))
    for step in (1, 2):
        run.train(step)
    tiny.save(ledger, writer, run, 2)
    writer.wait()

    writer.wait_if_needed(3)
    with pytest.raises(StorageFull, match=r"step 4: the newest durable candidate is of step 0.*allows 3 steps"):
        writer.wait_if_needed(4)

    tiny.save(ledger, writer, run, 2)
    writer.wait()
    writer.wait_if_needed(4)
    assert [manifest.name for manifest in ledger.candidates(0, 0)] == ["0000-00-0000"]


def test_step_records_shipped_by_a_failed_save_do_not_stand_in_the_way(ledger: Ledger, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step":1}\n{"step":2}\n{"st')
    request = tiny.request(ledger)

    first = checkpoints.ship_metrics(ledger, request, metrics, first_step=1, last_step=2)
    again = checkpoints.ship_metrics(ledger, request, metrics, first_step=1, last_step=2)

    assert first is not None
    assert first == again
    assert first.key.endswith("attempts/00/metrics/000001-000002.jsonl")
    assert checkpoints.ship_metrics(ledger, request, metrics, first_step=3, last_step=9) is None


def test_a_candidate_without_its_step_records_is_not_committed(ledger: Ledger, tmp_path: Path) -> None:
    run, writer = tiny.Run(), _writer(ledger, tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    run.train(1)

    tiny.save(ledger, writer, run, 1, tmp_path / "metrics.jsonl")

    with pytest.raises(PrunellaError, match="holds no record of steps 1 to 1"):
        writer.wait()
    assert ledger.candidates(0, 0) == []


def test_a_restarted_writer_goes_on_where_the_attempt_was(ledger: Ledger, tmp_path: Path) -> None:
    tiny.make_checkpoints(ledger, tmp_path)
    run = tiny.Run()
    for step in (1, 2, 3):
        run.train(step)

    writer = _writer(ledger, tmp_path)
    tiny.save(ledger, writer, run, 3)
    writer.wait()

    assert [manifest.name for manifest in ledger.candidates(0, 0)] == ["0000-00-0000", "0000-00-0001"]


def test_a_requested_corruption_flips_a_byte_once_after_the_commit(ledger: Ledger, tmp_path: Path) -> None:
    fault = faults.parse("corrupt-checkpoint:step=2")
    switch = FaultSwitch(ledger.store, ledger.name, (fault,))
    run, writer = tiny.Run(), _writer(ledger, tmp_path, switch=switch)
    for step in (1, 2, 3):
        run.train(step)
        if step > 1:
            tiny.save(ledger, writer, run, step)
    writer.wait()

    damaged, whole = [ledger.ref(manifest) for manifest in ledger.candidates(0, 0)]

    assert switch.fired(fault) is not None
    with pytest.raises(CheckpointInvalid, match="is damaged"):
        checkpoints.read_full(ledger, damaged)
    assert checkpoints.read_full(ledger, whole)[1].step == 3


def test_a_manifest_is_a_record_that_pins_every_file(ledger: Ledger, ref: CheckpointRef) -> None:
    manifest = ledger.manifest(ref)

    assert isinstance(manifest, CheckpointManifest)
    for entry in manifest.files:
        data = ledger.store.get(entry.key)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.size_bytes, entry.sha256)
