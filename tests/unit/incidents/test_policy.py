"""The policy is a table: one row of this file for each of its rows, and for each cause."""

import dataclasses

import pytest

from prunella.config import PolicyConfig
from prunella.errors import Cause
from prunella.incidents.policy import CLASS_OF, TABLE, Case, FailureClass, PastFailure, decide, spent
from prunella.records import Action, Diagnosis

SETTINGS = PolicyConfig(infrastructure_budget=3, workload_budget=2, unknown_budget=1, ceiling=10)


def found(cause: Cause, **more: object) -> Diagnosis:
    return Diagnosis(cause=cause, message="", confidence=0.9, **more)  # type: ignore[arg-type]


def past(cause: Cause, *, node: str | None = None, step: int | None = None, is_before_progress: bool = False) -> PastFailure:
    return PastFailure(cause=cause, node=node, step=step, is_before_progress=is_before_progress)


def case(diagnosis: Diagnosis | None = None, *history: PastFailure, **more: object) -> Case:
    given: dict[str, object] = {
        "attempts": 1 + len(history),
        "is_finished": False,
        "is_stop_requested": False,
        "is_breaker_open": False,
        "has_enough_nodes": True,
        "settings": SETTINGS,
        **more,
    }
    return Case(diagnosis=diagnosis, history=history, **given)  # type: ignore[arg-type]


#: A case for each cause when it comes first: what is done about it.
FIRST_ANSWERS: dict[Cause, tuple[str, Action]] = {
    Cause.PROCESS_CRASH: ("crashed", Action.RETRY_SAME_NODES),
    Cause.NODE_UNHEALTHY: ("nodes_in_doubt", Action.RETRY_SAME_NODES),
    Cause.HANG: ("crashed", Action.RETRY_SAME_NODES),
    Cause.NON_FINITE: ("non_finite", Action.ROLL_BACK),
    Cause.CHECKPOINT_INVALID: ("bad_checkpoint", Action.ROLL_BACK),
    Cause.DATA_CORRUPT: ("bad_shard", Action.RETRY_SAME_NODES),
    Cause.STORAGE_UNAVAILABLE: ("storage_away", Action.RETRY_SAME_NODES),
    Cause.OUT_OF_MEMORY: ("out_of_memory", Action.ASK),
    Cause.CONFIG_ERROR: ("config_error", Action.STOP),
    Cause.QUALITY_REGRESSION: ("quality_regression", Action.ASK),
    Cause.FENCED: ("fenced", Action.STOP),
    Cause.VANISHED: ("vanished", Action.RETRY_SAME_NODES),
    Cause.UNKNOWN: ("unknown", Action.RETRY_SAME_NODES),
}

#: A case that only this row decides. Rows with a cause of their own stand in FIRST_ANSWERS.
OTHER_ROWS: dict[str, tuple[Case, Action]] = {
    "stop_requested": (case(is_stop_requested=True), Action.STOP),
    "finished": (case(is_finished=True), Action.ACCEPT),
    "ceiling": (case(found(Cause.PROCESS_CRASH), attempts=10), Action.STOP),
    "interrupted": (case(), Action.RETRY_SAME_NODES),
    "budget_spent": (case(found(Cause.UNKNOWN), past(Cause.UNKNOWN)), Action.ASK),
    "breaker_open": (case(found(Cause.NODE_UNHEALTHY, node="node-1"), is_breaker_open=True), Action.ASK),
    "unhealthy_node": (case(found(Cause.NODE_UNHEALTHY, node="node-1")), Action.REPLACE_NODE),
    "too_few_nodes": (case(found(Cause.NODE_UNHEALTHY), has_enough_nodes=False), Action.ASK),
    "same_node_again": (
        case(found(Cause.HANG, node="node-1"), past(Cause.PROCESS_CRASH, node="node-1")),
        Action.REPLACE_NODE,
    ),
    "same_node_kept": (
        case(found(Cause.HANG, node="node-1"), past(Cause.PROCESS_CRASH, node="node-1"), has_enough_nodes=False),
        Action.RETRY_SAME_NODES,
    ),
    "poisoned_window": (
        case(found(Cause.NON_FINITE, step=14), past(Cause.NON_FINITE, step=14)),
        Action.ROLL_BACK_AND_SKIP,
    ),
    "storage_full": (case(found(Cause.STORAGE_UNAVAILABLE, evidence={"error": "StorageFull"})), Action.ASK),
}


@pytest.mark.parametrize("cause", list(Cause))
def test_each_cause_has_its_answer_when_it_comes_first(cause: Cause) -> None:
    choice = decide(case(found(cause)))

    assert (choice.row, choice.action) == FIRST_ANSWERS[cause]


@pytest.mark.parametrize("row", OTHER_ROWS)
def test_each_row_about_more_than_a_cause_decides_its_case(row: str) -> None:
    given, action = OTHER_ROWS[row]

    choice = decide(given)

    assert (choice.row, choice.action) == (row, action)


def test_every_row_of_the_table_is_reached_by_a_case_above() -> None:
    reached = {row for row, _ in FIRST_ANSWERS.values()} | set(OTHER_ROWS)

    assert reached == {row.name for row in TABLE}


def test_every_row_has_a_name_of_its_own_and_says_why() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE)
    assert all(row.message for row in TABLE)


def test_every_cause_has_a_class_that_pays() -> None:
    assert set(CLASS_OF) == set(Cause)


def test_a_choice_carries_the_words_of_its_row() -> None:
    choice = decide(case(found(Cause.OUT_OF_MEMORY)))

    assert choice.message == "the same configuration will not fit a second time"


# ------------------------------------------------------------------------------------------------ budgets and the ceiling


@pytest.mark.parametrize(
    ("cause", "budget"),
    [
        (Cause.PROCESS_CRASH, SETTINGS.infrastructure_budget),
        (Cause.HANG, SETTINGS.infrastructure_budget),
        (Cause.NODE_UNHEALTHY, SETTINGS.infrastructure_budget),
        (Cause.VANISHED, SETTINGS.infrastructure_budget),
        (Cause.STORAGE_UNAVAILABLE, SETTINGS.infrastructure_budget),
        (Cause.NON_FINITE, SETTINGS.workload_budget),
        (Cause.CHECKPOINT_INVALID, SETTINGS.workload_budget),
        (Cause.DATA_CORRUPT, SETTINGS.workload_budget),
        (Cause.UNKNOWN, SETTINGS.unknown_budget),
    ],
)
def test_a_class_may_fail_as_often_as_its_budget_and_then_a_person_is_asked(cause: Cause, budget: int) -> None:
    within = decide(case(found(cause), *[past(cause)] * (budget - 1)))
    beyond = decide(case(found(cause), *[past(cause)] * budget))

    assert within.row != "budget_spent"
    assert (beyond.row, beyond.action) == ("budget_spent", Action.ASK)


def test_classes_do_not_pay_for_each_other() -> None:
    failures = [past(Cause.NON_FINITE), past(Cause.NON_FINITE), past(Cause.UNKNOWN)]

    choice = decide(case(found(Cause.PROCESS_CRASH), *failures))

    assert choice.row == "crashed"


def test_progress_resets_a_budget() -> None:
    old = [past(Cause.PROCESS_CRASH, is_before_progress=True)] * 6

    given = case(found(Cause.PROCESS_CRASH), *old)

    assert spent(given, FailureClass.INFRASTRUCTURE) == 1
    assert decide(given).row == "crashed"


def test_progress_does_not_lift_the_ceiling() -> None:
    old = [past(Cause.PROCESS_CRASH, is_before_progress=True)] * 9

    choice = decide(case(found(Cause.PROCESS_CRASH), *old))

    assert (choice.row, choice.action) == ("ceiling", Action.STOP)


def test_the_ceiling_counts_attempts_whatever_their_cause() -> None:
    below, at = decide(case(None, attempts=9)), decide(case(None, attempts=10))

    assert (below.row, at.row) == ("interrupted", "ceiling")


def test_a_healthy_interruption_costs_no_budget() -> None:
    given = case(None, past(Cause.UNKNOWN), past(Cause.PROCESS_CRASH))

    assert spent(given, FailureClass.INFRASTRUCTURE) == 1
    assert decide(given).action is Action.RETRY_SAME_NODES


# ------------------------------------------------------------------------------------------------ again


@pytest.mark.parametrize("times", [2, 3])
def test_a_node_is_replaced_at_its_second_failure_or_as_configured(times: int) -> None:
    settings = dataclasses.replace(SETTINGS, failures_before_replace=times)
    crash = found(Cause.PROCESS_CRASH, node="node-1")
    before = [past(Cause.HANG, node="node-1")] * (times - 1)

    early = decide(case(crash, *before[1:], settings=settings))
    due = decide(case(crash, *before, settings=settings))

    assert (early.action, due.action) == (Action.RETRY_SAME_NODES, Action.REPLACE_NODE)


def test_a_crash_of_another_node_replaces_nobody() -> None:
    choice = decide(case(found(Cause.PROCESS_CRASH, node="node-0"), past(Cause.PROCESS_CRASH, node="node-1")))

    assert choice.row == "crashed"


def test_a_crash_without_a_culprit_replaces_nobody() -> None:
    choice = decide(case(found(Cause.PROCESS_CRASH), past(Cause.PROCESS_CRASH)))

    assert choice.row == "crashed"


@pytest.mark.parametrize(
    ("before", "row"),
    [
        (past(Cause.NON_FINITE, step=13), "non_finite"),
        (past(Cause.PROCESS_CRASH, step=14), "non_finite"),
        (past(Cause.NON_FINITE, step=14, is_before_progress=True), "poisoned_window"),
    ],
    ids=["another step", "another cause", "same step after progress"],
)
def test_a_batch_is_skipped_only_when_the_same_step_is_not_finite_again(before: PastFailure, row: str) -> None:
    assert decide(case(found(Cause.NON_FINITE, step=14), before)).row == row


# ------------------------------------------------------------------------------------------------ precedence


@pytest.mark.parametrize("is_finished", [False, True])
@pytest.mark.parametrize("is_breaker_open", [False, True])
@pytest.mark.parametrize("attempts", [1, 99])
def test_a_configuration_error_is_never_retried(is_finished: bool, is_breaker_open: bool, attempts: int) -> None:
    given = case(found(Cause.CONFIG_ERROR), is_finished=is_finished, is_breaker_open=is_breaker_open, attempts=attempts)

    choice = decide(given)

    assert (choice.row, choice.action) == ("config_error", Action.STOP)


@pytest.mark.parametrize("cause", list(Cause))
def test_a_stop_by_an_operator_wins_over_every_recovery(cause: Cause) -> None:
    assert decide(case(found(cause), is_stop_requested=True)).action is Action.STOP


def test_work_that_is_done_is_accepted_even_when_a_stop_came_late() -> None:
    assert decide(case(is_finished=True, is_stop_requested=True)).action is Action.ACCEPT


def test_work_that_is_done_is_accepted_even_at_the_ceiling() -> None:
    assert decide(case(is_finished=True, attempts=10)).action is Action.ACCEPT


@pytest.mark.parametrize("cause", list(Cause))
def test_nothing_that_failed_is_accepted(cause: Cause) -> None:
    assert decide(case(found(cause), is_finished=True)).action is not Action.ACCEPT


@pytest.mark.parametrize("cause", [Cause.DATA_CORRUPT, Cause.NON_FINITE, Cause.STORAGE_UNAVAILABLE, Cause.UNKNOWN])
def test_what_a_node_merely_reported_does_not_count_as_its_failure(cause: Cause) -> None:
    choice = decide(case(found(Cause.PROCESS_CRASH, node="node-1"), past(cause, node="node-1")))

    assert choice.row == "crashed"
