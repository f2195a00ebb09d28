"""Which experiments are due: by their timetable, after a death, and never while somebody else has the word."""

import dataclasses
from pathlib import Path

import pytest

from prunella.errors import Cause, ConfigError
from prunella.launch.handle import register
from prunella.orchestration import closing
from prunella.orchestration.advance import DEAD_AFTER_S, RunState, due_runs, is_due, next_cron_ns
from prunella.orchestration.claim import SegmentRun
from prunella.orchestration.graph import ASK_TIMEOUT_S
from prunella.records import Action, Outcome, Stage
from prunella.scratch import attempt_scratch, run_scratch
from unit.orchestration.story import CONFIG, NODES, OPENED_NS, SECOND, Story, failed, incident

HOUR = 3600 * SECOND
#: 2026-11-18 10:13:20 UTC, see `story.OPENED_NS`.
NOW = OPENED_NS + 60 * SECOND
DEAD = OPENED_NS + int(DEAD_AFTER_S * SECOND) + 60 * SECOND


def opened(root: str, schedule: str, name: str = "demo") -> Story:
    return Story(root=root, name=name, config=dataclasses.replace(CONFIG, schedule=schedule)).begin()


@pytest.fixture
def story(root: str) -> Story:
    return opened(root, "continuous")


# ------------------------------------------------------------------------------------------------ by the timetable


def test_a_continuous_experiment_is_due_at_once(story: Story) -> None:
    assert due_runs(story.root, now_ns=NOW) == [
        {
            "trigger_run_id": "demo__seg-0000__r0",
            "conf": {"root": story.root, "experiment": "demo", "continues": True},
        }
    ]


def test_a_continuous_experiment_goes_on_with_its_next_segment(story: Story) -> None:
    story.accept_segment(0)

    assert [run["trigger_run_id"] for run in due_runs(story.root, now_ns=NOW)] == ["demo__seg-0001__r0"]


def test_a_manual_experiment_is_never_due_by_itself(root: str) -> None:
    story = opened(root, "manual")
    before = is_due(story.ledger, NOW + 1000 * HOUR)
    story.accept_segment(0)

    assert not before
    assert not is_due(story.ledger, NOW + 1000 * HOUR)


def test_a_cron_experiment_is_due_from_its_next_time_on(root: str) -> None:
    story = opened(root, "cron:0 * * * *")
    eleven = next_cron_ns("0 * * * *", OPENED_NS)

    assert not is_due(story.ledger, eleven - 1)
    assert is_due(story.ledger, eleven)


def test_a_cron_experiment_waits_for_the_time_after_its_last_run_opened(root: str) -> None:
    story = opened(root, "cron:0 * * * *")
    story.accept_segment(0)

    assert not is_due(story.ledger, OPENED_NS + 60 * SECOND)
    assert is_due(story.ledger, OPENED_NS + HOUR)


@pytest.mark.parametrize(
    ("expression", "after_s", "expected_s"),
    [("*/30 * * * *", 0, 1800), ("*/30 * * * *", 1800, 3600), ("0 3 * * *", 0, 3 * 3600), ("0 0 2 1 *", 0, 86400)],
)
def test_cron_times_are_utc_and_strictly_later(expression: str, after_s: int, expected_s: int) -> None:
    assert next_cron_ns(expression, after_s * SECOND) == expected_s * SECOND


@pytest.mark.parametrize("expression", ["", "banana", "61 * * * *", "* * *"])
def test_what_is_no_cron_expression_is_an_error_with_an_example(expression: str) -> None:
    with pytest.raises(ConfigError, match=r"not a cron expression .* for example cron:\*/30"):
        next_cron_ns(expression, 0)


# ------------------------------------------------------------------------------------------------ who is left alone


def test_a_complete_experiment_is_not_due(story: Story) -> None:
    story.accept_segment(0)
    story.accept_segment(1)

    assert not is_due(story.ledger, NOW)


def test_a_stopped_experiment_is_not_due_until_the_stop_is_taken_back(story: Story) -> None:
    closing.request_stop(story.ledger, "maintenance")
    while_stopped = is_due(story.ledger, NOW)
    closing.request_resume(story.ledger, "done")

    assert not while_stopped
    assert is_due(story.ledger, NOW)


def test_an_experiment_whose_quality_fell_waits_for_a_person(story: Story) -> None:
    regression = incident(Cause.QUALITY_REGRESSION, Action.ASK)
    story.close(story.open_run(0), Outcome.ACCEPTED, attempt=0, incidents=(regression,))

    assert not is_due(story.ledger, NOW)


@pytest.mark.parametrize("action", [Action.STOP, Action.ASK])
def test_a_failed_segment_whose_last_word_was_stop_or_ask_is_left_to_a_person(story: Story, action: Action) -> None:
    run = story.open_run(0)
    story.decide(story.open_attempt(run, 0), action)
    story.close(run, Outcome.FAILED)

    assert not is_due(story.ledger, NOW)


def test_a_segment_that_failed_before_its_first_attempt_is_left_to_a_person(story: Story) -> None:
    story.close(story.open_run(0), Outcome.FAILED)

    assert not is_due(story.ledger, NOW)


def test_a_segment_that_only_ran_out_of_rungs_is_taken_up_again(story: Story) -> None:
    run = story.open_run(0)
    story.decide(story.open_attempt(run, 0), Action.RETRY_SAME_NODES)
    story.close(run, Outcome.FAILED)

    assert [due["trigger_run_id"] for due in due_runs(story.root, now_ns=NOW)] == ["demo__seg-0000__r1"]


def fenced_newer_run(story: Story) -> SegmentRun:
    """Run 0 of segment 0, which took the token from run 1 that somebody had started beside it."""
    older, newer = story.open_run(0), story.open_run(0, 1)
    lost = incident(Cause.FENCED, Action.STOP)
    story.decide(story.open_attempt(newer, 0), Action.STOP, incidents=(lost,))
    story.open_attempt(older, 1)
    story.close(newer, Outcome.FAILED)
    return older


def test_while_a_run_that_fenced_a_newer_one_is_at_work_nothing_is_started_beside_it(story: Story) -> None:
    fenced_newer_run(story)

    assert not is_due(story.ledger, NOW)


def test_an_experiment_goes_on_after_a_run_that_fenced_a_newer_one(story: Story) -> None:
    story.close(fenced_newer_run(story), Outcome.ACCEPTED, attempt=1)

    assert [due["trigger_run_id"] for due in due_runs(story.root, now_ns=NOW)] == ["demo__seg-0001__r0"]


def test_a_run_that_fenced_a_newer_one_and_died_is_taken_up_under_an_id_that_nobody_has(story: Story) -> None:
    fenced_newer_run(story)

    assert [due["trigger_run_id"] for due in due_runs(story.root, now_ns=DEAD)] == ["demo__seg-0000__r2"]


# ------------------------------------------------------------------------------------------------ the dead and the living


@pytest.mark.parametrize("schedule", ["continuous", "manual", "cron:0 * * * *"])
def test_a_run_that_died_without_a_close_is_due_under_the_next_id_whatever_the_schedule(root: str, schedule: str) -> None:
    story = opened(root, schedule)
    story.open_attempt(story.open_run(0), 0)

    assert [due["trigger_run_id"] for due in due_runs(root, now_ns=DEAD)] == ["demo__seg-0000__r1"]


def test_a_run_whose_next_task_waits_for_slots_is_not_dead_however_long_it_waits(story: Story) -> None:
    story.open_attempt(story.open_run(0), 0)
    asked = []

    def state_of(run_id: str) -> RunState:
        asked.append(run_id)
        return RunState.IN_HAND

    assert due_runs(story.root, now_ns=DEAD + 100 * HOUR, state_of=state_of) == []
    assert asked == ["demo__seg-0000__r0"]


def test_a_run_that_is_on_its_way_is_not_asked_for_again(story: Story) -> None:
    assert due_runs(story.root, now_ns=NOW, state_of={"demo__seg-0000__r0": RunState.IN_HAND}.get) == []


def test_a_run_that_ended_before_it_took_the_segment_up_leaves_the_next_one_another_id(story: Story) -> None:
    over = {"demo__seg-0000__r0": RunState.OVER}
    second = [due["trigger_run_id"] for due in due_runs(story.root, now_ns=NOW, state_of=over.get)]
    over |= dict.fromkeys(second, RunState.OVER)
    third = [due["trigger_run_id"] for due in due_runs(story.root, now_ns=NOW, state_of=over.get)]

    assert second == ["demo__seg-0000__r0-1"]
    assert third == ["demo__seg-0000__r0-2"]


def test_after_five_runs_that_took_nothing_up_a_person_is_waited_for(story: Story, caplog: pytest.LogCaptureFixture) -> None:
    assert due_runs(story.root, now_ns=NOW, state_of=lambda _: RunState.OVER) == []
    assert "ended before they took it up" in caplog.text


def test_a_run_that_wrote_something_lately_is_not_dead(story: Story) -> None:
    story.open_attempt(story.open_run(0), 0)

    assert not is_due(story.ledger, OPENED_NS + int((DEAD_AFTER_S - 1) * SECOND))


@pytest.mark.parametrize("is_data_prep", [False, True], ids=["a stage of an attempt", "data prep"])
def test_a_run_with_a_living_process_is_not_dead_however_long_it_has_been_quiet(story: Story, is_data_prep: bool) -> None:
    attempt = story.open_attempt(story.open_run(0), 0)
    of_run = run_scratch(story.root, "demo", 0, 0, opened_ns=story.ledger.runs(0)[0].opened_ns)
    of_attempt = attempt_scratch(story.root, "demo", 0, 0, opened_ns=attempt.opened_ns)
    folder: Path = of_run if is_data_prep else of_attempt
    register(folder / "stage-0.handle")

    assert not is_due(story.ledger, DEAD + 100 * HOUR)


def test_a_run_between_two_of_its_stages_is_not_dead(story: Story) -> None:
    attempt = story.open_attempt(story.open_run(0), 0)
    trained_s = 7200
    record = dataclasses.replace(failed(Stage.TRAINING_SEGMENT, Cause.PROCESS_CRASH), ended_ns=OPENED_NS + trained_s * SECOND)
    story.put_record(attempt, Stage.TRAINING_SEGMENT, record)

    assert not is_due(story.ledger, OPENED_NS + (trained_s + 5) * SECOND)
    assert is_due(story.ledger, DEAD + trained_s * SECOND)


def test_a_run_that_wrote_a_candidate_lately_is_not_dead(story: Story) -> None:
    story.open_attempt(story.open_run(0), 0)
    story.candidate(10, written_s=int(DEAD_AFTER_S))

    assert not is_due(story.ledger, DEAD)


def test_a_run_that_waits_for_the_answer_of_a_person_is_not_dead(story: Story) -> None:
    attempt = story.open_attempt(story.open_run(0), 0)
    story.decide(attempt, Action.ASK)
    answer_due_ns = int(ASK_TIMEOUT_S * SECOND)

    assert not is_due(story.ledger, OPENED_NS + answer_due_ns)
    assert is_due(story.ledger, DEAD + answer_due_ns)


# ------------------------------------------------------------------------------------------------ side by side


def test_several_experiments_advance_side_by_side(root: str) -> None:
    for name, schedule in (("a", "continuous"), ("b", "cron:* * * * *"), ("c", "manual")):
        opened(root, schedule, name)

    assert [due["conf"]["experiment"] for due in due_runs(root, now_ns=NOW)] == ["a", "b"]


def test_an_experiment_that_cannot_be_read_keeps_no_other_from_advancing(root: str) -> None:
    opened(root, "cron:banana", "bad")
    opened(root, "continuous", "good")

    assert [due["conf"]["experiment"] for due in due_runs(root, now_ns=NOW)] == ["good"]


def test_an_empty_root_has_nothing_due(root: str) -> None:
    assert due_runs(root, now_ns=NOW) == []


def test_the_nodes_of_the_story_are_the_default_fleet() -> None:
    assert [node.name for node in NODES] == ["node-0", "node-1", "node-2"]
