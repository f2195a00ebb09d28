"""The start of an attempt: the token first, then the newest checkpoint that passes."""

import dataclasses
from pathlib import Path

import pytest

from prunella.checkpoint_history import recent_checkpoints, verified_before
from prunella.config import Config, DataConfig, ModelConfig
from prunella.errors import Cause, ConfigError, Fenced, PrunellaError
from prunella.faults import flip_byte
from prunella.fleet.lifecycle import Fleet, Owner
from prunella.orchestration import closing
from prunella.orchestration.opening import (
    RELAUNCHES,
    StepFailed,
    dataset,
    failure_of,
    open_attempt,
    open_segment,
    prepare_data,
    skipped_windows,
)
from prunella.orchestration.stages import NotReached, gate_fabric
from prunella.records import (
    Action,
    AttemptOpened,
    CheckpointMark,
    CheckpointRef,
    DataPrepRecord,
    FailedRecord,
    GateNodeRequest,
    NodeRef,
    Outcome,
    ResumePoint,
    Stage,
    Window,
)
from prunella.tracking.history import read_history
from prunella.tracking.summary import summary
from unit.orchestration.story import CONFIG, OPENED_NS, Story, failed, incident


@pytest.fixture
def story(root: str) -> Story:
    return Story(root=root).begin()


def resume_point(story: Story, attempt: int) -> ResumePoint:
    point = story.ledger.resume_point(0, attempt)
    assert point is not None
    return point


def candidates(story: Story, *verdicts: bool) -> list[CheckpointRef]:
    """Attempt 0 with a judged candidate every 5 steps."""
    run = story.open_run()
    story.decide(story.open_attempt(run), Action.RETRY_SAME_NODES)
    found = [story.candidate(5 * (index + 1), index=index) for index in range(len(verdicts))]
    for ref, is_good in zip(found, verdicts, strict=True):
        story.judge_checkpoint(ref, is_good=is_good)
    return found


def open_next(story: Story) -> ResumePoint:
    open_attempt(story.open_run(0, 1), 0)
    return resume_point(story, 1)


def mark(story: Story, ref: CheckpointRef, word: str) -> None:
    story.ledger.put(story.ledger.mark_key(ref.name, word), CheckpointMark(checkpoint=ref.name, reason="", at_ns=OPENED_NS))


# ------------------------------------------------------------------------------------------------ the token


def test_the_first_attempt_starts_from_initialisation_and_asks_every_usable_node_to_be_gated(story: Story) -> None:
    keys = open_attempt(story.open_run(), 0)

    requests = [story.ledger.find(GateNodeRequest, key) for key in keys]
    assert resume_point(story, 0).step == 0
    assert resume_point(story, 0).checkpoint is None
    assert [request.node for request in requests if request] == ["node-0", "node-1", "node-2"]


def test_a_cordoned_node_is_not_asked(story: Story) -> None:
    Fleet(story.ledger.store).cordon("node-0", Owner.POLICY, "failed twice")

    keys = open_attempt(story.open_run(), 0)

    assert [key.rpartition("-")[2] for key in keys] == ["1.json", "2.json"]


def test_a_second_try_finds_its_opening_and_takes_no_new_token(story: Story) -> None:
    run = story.open_run()

    assert open_attempt(run, 0) == open_attempt(run, 0)
    assert len(story.ledger.attempts(0)) == 1


def test_a_second_try_that_died_before_the_resume_point_decides_it(story: Story) -> None:
    run = story.open_run()
    open_attempt(run, 0)
    story.ledger.store.delete(story.ledger.resume_key(0, 0))

    open_attempt(run, 0)

    assert resume_point(story, 0).step == 0


def test_opening_an_attempt_fences_the_one_before(story: Story) -> None:
    first, second = story.open_run(0, 0), story.open_run(0, 1)
    open_attempt(first, 0)
    story.ledger.check_token(segment=0, attempt=0, run_index=0)

    open_attempt(second, 0)

    with pytest.raises(Fenced, match="attempt 0 of segment 0 lost its token"):
        story.ledger.check_token(segment=0, attempt=0, run_index=0)
    story.ledger.check_token(segment=0, attempt=1, run_index=1)


# ------------------------------------------------------------------------------------------------ the resume point


def test_the_newest_verified_checkpoint_is_resumed_from(story: Story) -> None:
    _, newest = candidates(story, True, True)

    point = open_next(story)

    assert (point.step, point.checkpoint, point.rejected) == (10, newest, ())


def test_a_rejected_newest_checkpoint_falls_back_to_the_next_older_that_passes(story: Story) -> None:
    first, second, third = candidates(story, True, False, False)

    point = open_next(story)

    assert (point.step, point.checkpoint) == (5, first)
    assert point.rejected == (third, second)


def test_a_candidate_that_could_not_be_judged_is_not_taken_for_rejected(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    run = story.open_run()
    story.decide(story.open_attempt(run), Action.RETRY_SAME_NODES)
    story.candidate(5)
    story.prepare_data()
    monkeypatch.setenv("PRUNELLA_PYTHON", "/bin/false")

    with pytest.raises(PrunellaError, match="could not be judged"):
        open_next(story)

    assert story.ledger.resume_point(0, 1) is None


def test_when_nothing_passes_training_starts_over(story: Story) -> None:
    candidates(story, False, False)

    point = open_next(story)

    assert (point.step, point.checkpoint, len(point.rejected)) == (0, None, 2)


@pytest.mark.parametrize("word", ["revoked", "pruned"])
def test_a_checkpoint_that_is_gone_is_passed_over(story: Story, word: str) -> None:
    first, newest = candidates(story, True, True)
    mark(story, newest, word)

    point = open_next(story)

    assert (point.checkpoint, point.rejected) == (first, ())


def test_a_new_segment_resumes_from_the_one_before(story: Story) -> None:
    *_, newest = candidates(story, True, True, True, True)
    story.close(story.open_run(0, 1), Outcome.ACCEPTED)

    open_attempt(story.open_run(1), 0)

    point = story.ledger.resume_point(1, 0)
    assert point is not None
    assert (point.step, point.checkpoint) == (20, newest)


def test_recent_checkpoints_come_newest_step_first_across_attempts_and_segments(story: Story) -> None:
    candidates(story, True, True, True)
    story.open_attempt(story.open_run(0, 1), 1)
    story.candidate(15, attempt=1)
    story.open_attempt(story.open_run(1), 0)
    story.candidate(25, segment=1)

    names = [manifest.name for manifest in recent_checkpoints(story.ledger, 1)]

    assert names == ["0001-00-0000", "0000-01-0000", "0000-00-0002", "0000-00-0001", "0000-00-0000"]


def test_a_candidate_is_compared_with_the_newest_verified_one_before_it(story: Story) -> None:
    first, _, third = candidates(story, True, False, True)

    assert verified_before(story.ledger, 0, step=15) == first
    assert verified_before(story.ledger, 0, step=16) == third
    assert verified_before(story.ledger, 0, step=5) is None


def test_a_checkpoint_whose_manifest_is_damaged_is_passed_over(story: Story) -> None:
    first, second, _ = candidates(story, True, True, True)
    flip_byte(story.ledger.store, story.ledger.manifest_key("0000-00-0002"))

    assert [story.ledger.ref(manifest) for manifest in recent_checkpoints(story.ledger, 0)] == [second, first]


def test_no_node_is_gated_for_an_attempt_that_found_nothing_to_resume_from(story: Story) -> None:
    run = story.open_run()
    story.ledger.open_attempt(
        AttemptOpened(
            segment=0,
            attempt=0,
            run_index=run.run_index,
            run_id=run.run_id,
            rung=0,
            opened_ns=1,
            nodes=(NodeRef(name="node-0"),),
        )
    )

    with pytest.raises(NotReached, match="nothing to resume from"):
        gate_fabric(run, 0, lambda handle: None)


def test_every_window_that_was_ever_skipped_is_left_out(story: Story) -> None:
    story.decide(story.open_attempt(story.open_run()), Action.ROLL_BACK_AND_SKIP, skip=(Window(first=13, last=13),))
    second = story.open_attempt(story.open_run(1))
    story.decide(second, Action.ROLL_BACK_AND_SKIP, skip=(Window(first=22, last=22),))

    assert skipped_windows(story.ledger, 0) == (Window(first=13, last=13),)
    assert skipped_windows(story.ledger, 1) == (Window(first=13, last=13), Window(first=22, last=22))


# ------------------------------------------------------------------------------------------------ the segment


def test_a_stopped_experiment_opens_no_segment_and_says_how_to_go_on(story: Story) -> None:
    closing.request_stop(story.ledger, "maintenance")

    with pytest.raises(StepFailed, match="`prunella resume`"):
        open_segment(story.open_run())


def test_a_segment_waits_for_the_one_before(story: Story) -> None:
    with pytest.raises(StepFailed, match="segment 0 was not accepted"):
        open_segment(story.open_run(1))


def test_opening_a_segment_settles_what_an_earlier_run_left(story: Story) -> None:
    story.open_attempt(story.open_run(0, 0))

    open_segment(story.open_run(0, 1))

    decision = story.ledger.decision(0, 0)
    assert decision is not None
    assert decision.incidents[0].diagnosis.cause is Cause.VANISHED


# ------------------------------------------------------------------------------------------------ data


@pytest.fixture
def tiny_corpus(tmp_path: Path) -> Config:
    """A configuration over forty short documents: data prep takes a moment."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(40):
        (corpus / f"{number}.txt").write_text(f"document {number} tells of words, " * 40)
    data = DataConfig(inputs=(str(corpus),), heldout_fraction=0.2, shard_tokens=1024, workers=1)
    return dataclasses.replace(CONFIG, data=data, model=ModelConfig(vocab_size=300, seq_len=16))


def test_an_experiment_without_data_says_which_step_makes_it(story: Story) -> None:
    with pytest.raises(ConfigError, match="prepare_data"):
        dataset(story.ledger)


def test_a_corpus_that_is_not_there_fails_the_step_with_the_record_that_says_so(root: str) -> None:
    config = dataclasses.replace(CONFIG, data=DataConfig(inputs=("/no/such/corpus",)))
    story = Story(root=root, config=config).begin()
    run = story.open_run()

    with pytest.raises(StepFailed, match=r"no data set: .*no such file or folder") as raised:
        prepare_data(run)

    assert isinstance(raised.value.record, FailedRecord)
    assert failure_of(run, str(raised.value)).record == raised.value.record
    assert story.ledger.find_stage_record(DataPrepRecord, story.ledger.dataset_key) is None


def test_data_prep_that_vanished_every_time_closes_the_segment_with_an_incident_that_says_so(story: Story) -> None:
    run = story.open_run()
    key = f"{story.ledger.segment_prefix(0)}/runs/00/data_prep.json"
    gone = failed(Stage.DATA_PREP, Cause.VANISHED)
    vanishings = [dataclasses.replace(gone, ended_ns=gone.ended_ns + start) for start in range(RELAUNCHES + 1)]
    for start, record in enumerate(vanishings):
        story.ledger.put(story.ledger.vanished_key(key, start), record)

    with pytest.raises(StepFailed, match="no data set: raised vanished") as raised:
        prepare_data(run)
    close = closing.close_segment(run, failed=failure_of(run, "told by another task"))

    assert raised.value.record == vanishings[-1]
    assert [(i.diagnosis.cause, i.detected_ns) for i in close.incidents] == [(Cause.VANISHED, vanishings[-1].ended_ns)]
    found = summary(read_history(story.ledger), mlflow_run_id=None, now_ns=close.closed_ns)
    assert (found.state, [i.cause for i in found.incidents]) == ("failed", ["vanished"])


def test_a_damaged_data_set_is_repaired_before_the_next_attempt_by_one_process(root: str, tiny_corpus: Config) -> None:
    story = Story(root=root, config=tiny_corpus).begin()
    run = story.open_run()
    prepare_data(run)
    shard = min(path for path in Path(root).glob("datasets/*/*") if path.name.startswith("train"))
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    corrupt = incident(Cause.DATA_CORRUPT, Action.RETRY_SAME_NODES)
    story.decide(story.open_attempt(run), Action.RETRY_SAME_NODES, incidents=(corrupt,))

    open_attempt(run, 1)

    key = story.ledger.record_key(0, 1, "data_prep")
    record = story.ledger.find_stage_record(DataPrepRecord, key)
    assert isinstance(record, DataPrepRecord)
    assert record.repaired_shards == (0,)
    assert shard.read_bytes() == content
    assert story.ledger.vanishings(key) == []
