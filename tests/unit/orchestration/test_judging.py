"""The verdict of an attempt, folded from real records in a real ledger."""

import dataclasses
import time

import pytest

from prunella.config import Config, PolicyConfig, Unattended
from prunella.errors import Cause
from prunella.fleet.lifecycle import Fleet, Owner
from prunella.ledger import Ledger
from prunella.orchestration import closing
from prunella.orchestration.judging import accepted_records, judge, past_failures, settle, verdict
from prunella.orchestration.opening import StepFailed
from prunella.records import (
    Action,
    AttemptOpened,
    CheckpointRef,
    DecisionRecord,
    FailedRecord,
    Failure,
    NodeState,
    Outage,
    Outcome,
    Stage,
    StopReason,
    Verdict,
    Window,
)
from unit.orchestration.story import CONFIG, OPENED_NS, SECOND, Story, failed, incident

CRASH = Failure(cause=Cause.PROCESS_CRASH, message="rank 1 died of signal 9", node="node-1", rank=1, step=14)
NAN = Failure(cause=Cause.NON_FINITE, message="loss is nan", step=14)


@pytest.fixture
def story(root: str) -> Story:
    return Story(root=root).begin()


def judged(story: Story, attempt: AttemptOpened, *, is_unattended: bool = False) -> DecisionRecord:
    run = dataclasses.replace(run_of(story, attempt), is_unattended=is_unattended)
    return judge(story.ledger, run, attempt)


def run_of(story: Story, attempt: AttemptOpened) -> closing.SegmentRun:
    return closing.SegmentRun(
        root=story.root,
        experiment=story.name,
        segment=attempt.segment,
        run_index=attempt.run_index,
        run_id=attempt.run_id,
        is_unattended=False,
    )


def crashed(story: Story, *, attempt: int = 0) -> AttemptOpened:
    """An attempt that executed 13 steps, saved 5 and 10, and crashed in 14."""
    run = story.open_run() if attempt == 0 else run_of(story, story.ledger.attempts(0)[0])
    opened = story.open_attempt(run, attempt)
    story.gate(opened)
    for index, step in enumerate((5, 10)):
        story.candidate(step, attempt=attempt, index=index)
    story.train(opened, 13, failure=CRASH)
    return opened


def accepted(story: Story) -> AttemptOpened:
    attempt = story.open_attempt(story.open_run())
    story.gate(attempt)
    story.train(attempt)
    story.validate(attempt, story.candidate(20))
    return attempt


# ------------------------------------------------------------------------------------------------ decisions


def test_an_attempt_that_reached_the_end_and_was_verified_is_accepted(story: Story) -> None:
    decision = judged(story, accepted(story))

    assert (decision.action, decision.row, decision.incidents) == (Action.ACCEPT, "finished", ())


def test_a_crash_is_retried_and_costs_the_steps_since_the_last_candidate(story: Story) -> None:
    decision = judged(story, crashed(story))

    found = decision.incidents[0]
    assert (decision.action, decision.row) == (Action.RETRY_SAME_NODES, "crashed")
    assert (found.diagnosis.node, found.diagnosis.rank, found.diagnosis.step) == ("node-1", 1, 14)
    assert found.lost_steps == 3
    assert decision.message.startswith("rank 1 died of signal 9; ")


def test_a_rejected_candidate_saves_nothing(story: Story) -> None:
    attempt = crashed(story)
    newest = story.ledger.ref(story.ledger.candidates(0, 0)[-1])
    story.judge_checkpoint(newest, is_good=False)

    decision = judged(story, attempt)

    assert decision.incidents[0].lost_steps == 13 - 5


def test_a_decision_is_made_once(story: Story) -> None:
    attempt = crashed(story)

    first, second = judged(story, attempt), judged(story, attempt)

    assert second == first == story.ledger.decision(0, 0)


def test_a_node_that_was_gated_out_is_an_incident_of_an_accepted_attempt(story: Story) -> None:
    attempt = story.open_attempt(story.open_run())
    story.gate(attempt, bad="node-1")
    story.train(attempt)
    story.validate(attempt, story.candidate(20))

    decision = judged(story, attempt)

    (found,) = decision.incidents
    assert decision.action is Action.ACCEPT
    assert (found.row, found.action, found.diagnosis.node) == ("gated_out", Action.REPLACE_NODE, "node-1")
    assert found.fault_ns == OPENED_NS + SECOND
    assert found.detected_ns == found.decided_ns == OPENED_NS + 2 * SECOND


def test_a_node_whose_gate_left_no_record_is_an_incident_too(story: Story) -> None:
    attempt = story.open_attempt(story.open_run())
    story.gate(attempt, silent="node-2")
    story.train(attempt)
    story.validate(attempt, story.candidate(20))

    (found,) = judged(story, attempt).incidents

    assert (found.diagnosis.cause, found.diagnosis.node) == (Cause.VANISHED, "node-2")


def test_an_outage_that_training_waited_out_is_an_incident_that_cost_only_time(story: Story) -> None:
    outage = Outage(start_ns=OPENED_NS, end_ns=OPENED_NS + SECOND, step=7, message="out of reach")
    attempt = story.open_attempt(story.open_run())
    story.gate(attempt)
    story.train(attempt, outages=(outage,))
    story.validate(attempt, story.candidate(20))

    decision = judged(story, attempt)

    (found,) = decision.incidents
    assert decision.action is Action.ACCEPT
    assert (found.row, found.diagnosis.cause, found.lost_steps) == ("waited_out", Cause.STORAGE_UNAVAILABLE, 0)
    assert (found.fault_ns, found.decided_ns) == (outage.start_ns, outage.end_ns)


def test_a_stage_that_was_started_again_is_an_incident_of_an_accepted_attempt(story: Story) -> None:
    attempt = accepted(story)
    gone = FailedRecord(
        stage=Stage.CHECKPOINT_VALIDATION,
        verdict=Verdict.UNKNOWN,
        started_ns=OPENED_NS,
        ended_ns=OPENED_NS,
        failure=Failure(cause=Cause.VANISHED, message="ended without a record"),
    )
    story.put_record(attempt, "checkpoint_validation.vanished-0", gone)

    decision = judged(story, attempt)

    assert decision.action is Action.ACCEPT
    assert [found.row for found in decision.incidents] == ["stage_started_again"]


def test_an_attempt_stopped_by_a_signal_in_good_health_goes_on(story: Story) -> None:
    attempt = story.open_attempt(story.open_run())
    story.gate(attempt)
    story.train(attempt, 12, stopped_by=StopReason.SIGNAL)
    story.validate(attempt, story.candidate(12))

    decision = judged(story, attempt)

    assert (decision.action, decision.row, decision.incidents) == (Action.RETRY_SAME_NODES, "interrupted", ())


def test_an_attempt_stopped_before_its_first_step_goes_on_and_pays_no_budget(story: Story) -> None:
    attempt = story.open_attempt(story.open_run())
    story.gate(attempt)
    story.train(attempt, 0, stopped_by=StopReason.SIGNAL)

    decision = judged(story, attempt)
    later = story.open_attempt(run_of(story, attempt), 1)

    assert (decision.action, decision.row, decision.incidents) == (Action.RETRY_SAME_NODES, "interrupted", ())
    assert past_failures(story.ledger, later) == ()


def test_an_attempt_that_was_never_opened_has_no_verdict(story: Story) -> None:
    assert verdict(story.open_run(), 0) is None


# ------------------------------------------------------------------------------------------------ vanished


def test_training_that_left_no_record_has_vanished_and_was_well_until_its_last_candidate(story: Story) -> None:
    attempt = story.open_attempt(story.open_run())
    story.gate(attempt)
    story.ask(attempt, Stage.TRAINING_SEGMENT)
    story.candidate(5, written_s=7)
    before_ns = time.time_ns()

    decision = judged(story, attempt)

    (found,) = decision.incidents
    assert (decision.action, decision.row) == (Action.RETRY_SAME_NODES, "vanished")
    assert found.diagnosis.message == "training_segment was started and left no record"
    assert found.fault_ns == OPENED_NS + 7 * SECOND
    assert found.detected_ns >= before_ns


def test_a_validation_that_vanished_began_to_be_missing_when_training_ended(story: Story) -> None:
    attempt = story.open_attempt(story.open_run())
    story.gate(attempt)
    story.train(attempt)
    story.ask(attempt, Stage.CHECKPOINT_VALIDATION)

    (found,) = judged(story, attempt).incidents

    assert found.fault_ns == OPENED_NS + 9 * SECOND


def test_an_attempt_of_which_nothing_ran_blames_no_node(story: Story) -> None:
    decision = judged(story, story.open_attempt(story.open_run()))

    (found,) = decision.incidents
    assert (found.diagnosis.cause, found.diagnosis.node) == (Cause.VANISHED, None)


def test_an_attempt_that_lost_its_token_is_fenced_and_changes_nothing(story: Story) -> None:
    attempt = crashed(story)
    story.open_attempt(story.open_run(0, 1), 1)

    decision = judged(story, attempt)

    assert (decision.action, decision.row) == (Action.STOP, "fenced")
    assert decision.incidents[0].diagnosis.cause is Cause.FENCED


# ------------------------------------------------------------------------------------------------ history


def test_a_failure_before_progress_is_told_apart_from_one_after(story: Story) -> None:
    judged(story, crashed(story))
    resume = story.ledger.ref(story.ledger.candidates(0, 0)[-1])
    second = story.open_attempt(run_of(story, story.ledger.attempts(0)[0]), 1, resume=resume)

    without_progress = past_failures(story.ledger, second)
    story.candidate(15, attempt=1)

    assert [failure.is_before_progress for failure in without_progress] == [False]
    assert [failure.is_before_progress for failure in past_failures(story.ledger, second)] == [True]


def test_a_second_crash_of_the_same_node_replaces_it_in_the_ledger_of_the_fleet(story: Story) -> None:
    judged(story, crashed(story))

    decision = judged(story, crashed(story, attempt=1))

    assert (decision.action, decision.row) == (Action.REPLACE_NODE, "same_node_again")
    assert decision.avoid_nodes == ("node-1",)
    assert Fleet(story.ledger.store).state("node-1") is NodeState.CORDONED


def test_a_node_that_crashed_twice_is_kept_where_none_could_take_its_place(story: Story) -> None:
    Fleet(story.ledger.store).cordon("node-2", Owner.OPERATOR, "its fan is loud")
    judged(story, crashed(story))

    decision = judged(story, crashed(story, attempt=1))

    assert (decision.action, decision.row) == (Action.RETRY_SAME_NODES, "same_node_kept")
    assert Fleet(story.ledger.store).state("node-1") is NodeState.NEW


def test_too_few_nodes_are_gated_again_where_the_gate_could_not_tell_of_enough_others(story: Story) -> None:
    attempt = story.open_attempt(story.open_run())
    story.gate(attempt, doubted=("node-0", "node-1"))

    decision = judged(story, attempt)

    assert (decision.action, decision.row) == (Action.RETRY_SAME_NODES, "nodes_in_doubt")
    assert decision.avoid_nodes == ()


def test_too_few_nodes_ask_a_person_where_the_others_are_cordoned(story: Story) -> None:
    for node in ("node-0", "node-2"):
        Fleet(story.ledger.store).cordon(node, Owner.GATE, "wrong products")
    attempt = story.open_attempt(story.open_run())
    story.gate(attempt, doubted=("node-0", "node-1"))

    decision = judged(story, attempt)

    assert (decision.action, decision.row) == (Action.ASK, "too_few_nodes")


def test_an_interrupted_attempt_that_only_replaced_a_node_was_no_failure(story: Story) -> None:
    first = story.open_attempt(story.open_run())
    story.gate(first, bad="node-1")
    story.train(first, 12, stopped_by=StopReason.SIGNAL)
    story.validate(first, story.candidate(12))
    judged(story, first)

    second = story.open_attempt(run_of(story, first), 1)

    assert past_failures(story.ledger, second) == ()


def test_a_failure_that_nobody_could_be_asked_about_counts_in_the_history(root: str) -> None:
    story = Story(root=root, config=with_policy(unattended=Unattended.RETRY)).begin()
    first = story.open_attempt(story.open_run())
    story.gate(first)
    story.fail(first, Stage.TRAINING_SEGMENT, Cause.OUT_OF_MEMORY)
    judged(story, first, is_unattended=True)

    second = story.open_attempt(run_of(story, first), 1)

    assert [failure.cause for failure in past_failures(story.ledger, second)] == [Cause.OUT_OF_MEMORY]


# ------------------------------------------------------------------------------------------------ an orphan of an earlier run


def test_an_attempt_that_a_dead_run_left_without_a_verdict_is_settled_by_the_next_run(story: Story) -> None:
    crashed(story)

    settle(story.ledger, story.open_run(0, 1))

    decision = story.ledger.decision(0, 0)
    assert decision is not None
    assert (decision.action, decision.row) == (Action.RETRY_SAME_NODES, "crashed")


def test_an_orphan_of_a_run_that_closed_without_a_verdict_is_judged_by_its_records(story: Story) -> None:
    attempt = story.open_attempt(story.open_run())
    story.gate(attempt)
    story.fail(attempt, Stage.TRAINING_SEGMENT, Cause.DATA_CORRUPT)
    story.close(run_of(story, attempt), Outcome.FAILED)

    settle(story.ledger, story.open_run(0, 1))

    decision = story.ledger.decision(0, 0)
    assert decision is not None
    assert decision.incidents[0].diagnosis.cause is Cause.DATA_CORRUPT


def replaced(story: Story, attempt: AttemptOpened) -> None:
    """A verdict to replace node-1, whose orchestrator died before it did."""
    decision = DecisionRecord(
        segment=0,
        attempt=attempt.attempt,
        action=Action.REPLACE_NODE,
        row="same_node_again",
        message="the same node failed again",
        incidents=(),
        started_ns=time.time_ns(),
        decided_ns=time.time_ns(),
        avoid_nodes=("node-1",),
    )
    story.ledger.put(story.ledger.decision_key(0, attempt.attempt), decision)


def test_a_verdict_that_a_dead_run_did_not_carry_out_is_carried_out_by_the_next_run(story: Story) -> None:
    replaced(story, crashed(story))

    settle(story.ledger, story.open_run(0, 1))

    assert Fleet(story.ledger.store).state("node-1") is NodeState.CORDONED


def test_settling_does_not_cordon_again_what_a_person_gave_back(story: Story) -> None:
    replaced(story, crashed(story))
    settle(story.ledger, story.open_run(0, 1))
    Fleet(story.ledger.store).uncordon("node-1", Owner.OPERATOR, "a new power supply")

    settle(story.ledger, story.open_run(0, 2))

    assert Fleet(story.ledger.store).state("node-1") is NodeState.RETURNED


def test_settling_leaves_the_attempts_of_its_own_run_alone(story: Story) -> None:
    attempt = crashed(story)

    settle(story.ledger, run_of(story, attempt))

    assert story.ledger.decision(0, 0) is None


# ------------------------------------------------------------------------------------------------ stop


def test_a_requested_stop_ends_an_unfinished_attempt(story: Story) -> None:
    attempt = story.open_attempt(story.open_run())
    story.gate(attempt)
    story.train(attempt, 12, stopped_by=StopReason.SIGNAL)
    story.validate(attempt, story.candidate(12))
    closing.request_stop(story.ledger, "maintenance")

    decision = judged(story, attempt)

    assert (decision.action, decision.row) == (Action.STOP, "stop_requested")


def test_a_requested_stop_opens_no_attempt_after_a_rejected_last_checkpoint(story: Story) -> None:
    attempt = story.open_attempt(story.open_run())
    story.gate(attempt)
    story.train(attempt)
    story.validate(attempt, story.candidate(20), is_good=False)
    closing.request_stop(story.ledger, "maintenance")

    assert judged(story, attempt).action is Action.STOP


def test_a_stop_that_came_after_the_work_was_done_does_not_throw_it_away(story: Story) -> None:
    attempt = accepted(story)
    closing.request_stop(story.ledger, "maintenance")

    assert judged(story, attempt).action is Action.ACCEPT


# ------------------------------------------------------------------------------------------------ skipping


def poisoned(story: Story, attempt: int, skipped: tuple[Window, ...] = ()) -> AttemptOpened:
    run = story.open_run() if attempt == 0 else run_of(story, story.ledger.attempts(0)[0])
    opened = story.open_attempt(run, attempt, skipped=skipped)
    story.gate(opened)
    story.train(opened, 13, failure=NAN)
    return opened


def test_a_first_non_finite_step_rolls_back_and_skips_nothing(story: Story) -> None:
    decision = judged(story, poisoned(story, 0))

    assert (decision.action, decision.skip) == (Action.ROLL_BACK, ())


def test_the_same_step_again_skips_its_batch(story: Story) -> None:
    judged(story, poisoned(story, 0))

    decision = judged(story, poisoned(story, 1))

    assert decision.action is Action.ROLL_BACK_AND_SKIP
    assert decision.skip == (Window(first=13, last=13),)


def test_the_skipped_batch_is_the_one_the_step_saw_with_earlier_windows_left_out(story: Story) -> None:
    judged(story, poisoned(story, 0))

    decision = judged(story, poisoned(story, 1, skipped=(Window(first=2, last=4),)))

    assert decision.skip == (Window(first=16, last=16),)


# ------------------------------------------------------------------------------------------------ checkpoints


def test_a_verified_checkpoint_that_does_not_load_is_revoked(story: Story) -> None:
    ref = story.candidate(10)
    story.judge_checkpoint(ref)
    attempt = story.open_attempt(story.open_run(), resume=ref)
    story.gate(attempt)
    story.fail(attempt, Stage.TRAINING_SEGMENT, Cause.CHECKPOINT_INVALID)

    decision = judged(story, attempt)

    mark = story.ledger.mark(ref.name, "revoked")
    assert decision.action is Action.ROLL_BACK
    assert mark is not None
    assert mark.reason == "raised checkpoint_invalid"


def test_a_candidate_that_validation_rejects_revokes_nothing(story: Story) -> None:
    ref = story.candidate(10)
    attempt = story.open_attempt(story.open_run(), resume=ref)
    story.gate(attempt)
    story.train(attempt)
    story.validate(attempt, story.candidate(20, index=1), is_good=False)

    decision = judged(story, attempt)

    assert (decision.action, decision.incidents[0].lost_steps) == (Action.ROLL_BACK, 10)
    assert story.ledger.mark(ref.name, "revoked") is None


# ------------------------------------------------------------------------------------------------ nobody to ask


def with_policy(**changes: object) -> Config:
    return dataclasses.replace(CONFIG, policy=PolicyConfig(**changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("unattended", "action"), [(Unattended.STOP, Action.STOP), (Unattended.RETRY, Action.RETRY_SAME_NODES)]
)
def test_where_nobody_can_answer_the_configured_answer_is_taken(root: str, unattended: Unattended, action: Action) -> None:
    story = Story(root=root, config=with_policy(unattended=unattended)).begin()
    attempt = story.open_attempt(story.open_run())
    story.gate(attempt)
    story.fail(attempt, Stage.TRAINING_SEGMENT, Cause.OUT_OF_MEMORY)

    decision = judged(story, attempt, is_unattended=True)

    assert (decision.action, decision.row) == (action, "out_of_memory (unattended)")
    assert "nobody is there to ask" in decision.message


def test_where_a_person_is_there_they_are_asked(story: Story) -> None:
    attempt = story.open_attempt(story.open_run())
    story.gate(attempt)
    story.fail(attempt, Stage.TRAINING_SEGMENT, Cause.OUT_OF_MEMORY)

    assert judged(story, attempt).action is Action.ASK


# ------------------------------------------------------------------------------------------------ closing


def test_the_close_vouches_for_every_record_of_the_attempt_by_digest(story: Story) -> None:
    attempt = accepted(story)
    judged(story, attempt)
    ledger: Ledger = story.ledger

    records = accepted_records(ledger, attempt)

    names = {key.rpartition("/")[2] for key in records}
    gates = {f"gate_node-{node.name}.json" for node in attempt.nodes}
    others = {"gate_fabric.json", "training_segment.json", "checkpoint_validation.json", "resume.json", "decision.json"}
    assert names == gates | others
    assert all(ledger.sha256(key) == sha256 for key, sha256 in records.items())


def test_a_regression_closes_as_accepted_and_waits_for_a_person(story: Story) -> None:
    found = incident(Cause.QUALITY_REGRESSION, Action.ASK)

    close = story.close(story.open_run(), Outcome.ACCEPTED, incidents=(found,))

    assert closing.is_waiting_for_a_person(close)
    assert not closing.may_continue(story.ledger, close)


def test_an_evaluation_that_vanished_is_an_incident_of_the_close(story: Story) -> None:
    attempt = accepted(story)
    judged(story, attempt)
    gone = FailedRecord(
        stage=Stage.EVALUATION,
        verdict=Verdict.UNKNOWN,
        started_ns=OPENED_NS,
        ended_ns=OPENED_NS,
        failure=Failure(cause=Cause.VANISHED, message="ended without a record"),
    )
    story.put_record(attempt, "evaluation.vanished-0", gone)

    close = closing.close_segment(run_of(story, attempt))

    (found,) = close.incidents
    assert close.outcome is Outcome.ACCEPTED
    assert (found.diagnosis.cause, found.row) == (Cause.VANISHED, "not_evaluated")


@pytest.mark.parametrize(
    ("step", "cause", "message"),
    [
        (StepFailed(None, "no pod sees the corpus", Cause.CONFIG_ERROR), Cause.CONFIG_ERROR, "no pod sees the corpus"),
        (StepFailed(None, "segment 0 was not accepted"), Cause.UNKNOWN, "segment 0 was not accepted"),
        (None, Cause.UNKNOWN, "no attempt was opened; the log of the first task that failed says why"),
    ],
    ids=["not launched", "predecessor not accepted", "failed without a word"],
)
def test_a_run_that_opened_no_attempt_closes_with_an_incident(
    story: Story, step: StepFailed | None, cause: Cause, message: str
) -> None:
    close = closing.close_segment(story.open_run(), failed=step)

    (found,) = close.incidents
    assert (close.outcome, close.message) == (Outcome.FAILED, message)
    assert (found.diagnosis.cause, found.diagnosis.message) == (cause, message)
    assert (found.action, found.row) == (Action.STOP, "before_attempts")
    assert (found.fault_ns, found.detected_ns) == (OPENED_NS, found.decided_ns)


def test_a_stop_that_a_person_asked_for_is_no_incident(story: Story) -> None:
    closing.request_stop(story.ledger, "maintenance")

    close = closing.close_segment(story.open_run(), failed=StepFailed(None, "the experiment is stopped"))

    assert (close.outcome, close.incidents) == (Outcome.STOPPED, ())


def test_what_failed_before_a_stop_stays_an_incident(story: Story) -> None:
    closing.request_stop(story.ledger, "maintenance")
    record = failed(Stage.DATA_PREP, Cause.OUT_OF_MEMORY)

    close = closing.close_segment(story.open_run(), failed=StepFailed(record, "no data set: raised out_of_memory"))

    assert [incident.diagnosis.cause for incident in close.incidents] == [Cause.OUT_OF_MEMORY]


# ------------------------------------------------------------------------------------------------ at the opening of an attempt


def opened_with(story: Story, *judged_then: tuple[CheckpointRef, bool], resume: CheckpointRef | None) -> AttemptOpened:
    """A second attempt, which had these checkpoints of the first judged before it took `resume`."""
    attempt = story.open_attempt(run_of(story, story.ledger.attempts(0)[0]), 1, resume=resume)
    for ref, is_good in judged_then:
        story.put_record(attempt, f"checkpoint_validation-{ref.name}", story.judge_checkpoint(ref, is_good=is_good))
    return attempt


def test_each_checkpoint_that_an_opening_rejects_is_an_incident_that_lost_the_steps_down_to_the_next(story: Story) -> None:
    attempt = story.open_attempt(story.open_run())
    story.gate(attempt)
    refs = [story.candidate(step, index=index) for index, step in enumerate((5, 10, 15))]
    story.train(attempt, 17, failure=CRASH)
    first = judged(story, attempt)
    healing = opened_with(story, (refs[2], False), (refs[1], False), (refs[0], True), resume=refs[0])
    story.gate(healing)
    story.train(healing, 20)
    story.validate(healing, story.candidate(20, attempt=1))

    second = judged(story, healing)

    assert [incident.lost_steps for incident in first.incidents] == [2]
    assert second.action is Action.ACCEPT
    assert [(i.diagnosis.cause, i.row, i.lost_steps) for i in second.incidents] == [
        (Cause.CHECKPOINT_INVALID, "rejected_at_opening", 5),
        (Cause.CHECKPOINT_INVALID, "rejected_at_opening", 5),
    ]


def test_an_attempt_that_could_not_judge_a_checkpoint_failed_of_what_stopped_the_judging(story: Story) -> None:
    judged(story, crashed(story))
    run = run_of(story, story.ledger.attempts(0)[0])
    attempt = dataclasses.replace(story.ledger.attempts(0)[0], attempt=1, rung=1)
    story.ledger.open_attempt(attempt)
    newest = story.ledger.candidates(0, 0)[-1]
    damaged = failed(Stage.CHECKPOINT_VALIDATION, Cause.DATA_CORRUPT)
    story.put_record(attempt, f"checkpoint_validation-{newest.name}", damaged)

    decision = judge(story.ledger, run, attempt)

    assert (decision.action, decision.row) == (Action.RETRY_SAME_NODES, "bad_shard")
    assert decision.incidents[0].diagnosis.cause is Cause.DATA_CORRUPT
