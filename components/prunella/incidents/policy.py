"""The only place that decides: (diagnosis, history, settings) -> one action, by the first row of a table that fits.

Pure. Detectors describe, this chooses, the orchestrator acts. Budgets count failed attempts since the last progress, by
class of failure, under one ceiling for the segment; Airflow's tries never count. A configuration error stops at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from prunella.config import PolicyConfig
from prunella.errors import Cause
from prunella.records import Action, Diagnosis


class FailureClass(StrEnum):
    """Who pays: each class has a budget of its own (FIELD 6, R6)."""

    INFRASTRUCTURE = "infrastructure"
    WORKLOAD = "workload"
    UNKNOWN = "unknown"


CLASS_OF: dict[Cause, FailureClass] = {
    Cause.PROCESS_CRASH: FailureClass.INFRASTRUCTURE,
    Cause.NODE_UNHEALTHY: FailureClass.INFRASTRUCTURE,
    Cause.HANG: FailureClass.INFRASTRUCTURE,
    Cause.STORAGE_UNAVAILABLE: FailureClass.INFRASTRUCTURE,
    Cause.VANISHED: FailureClass.INFRASTRUCTURE,
    Cause.FENCED: FailureClass.INFRASTRUCTURE,
    Cause.NON_FINITE: FailureClass.WORKLOAD,
    Cause.CHECKPOINT_INVALID: FailureClass.WORKLOAD,
    Cause.DATA_CORRUPT: FailureClass.WORKLOAD,
    Cause.OUT_OF_MEMORY: FailureClass.WORKLOAD,
    Cause.CONFIG_ERROR: FailureClass.WORKLOAD,
    Cause.QUALITY_REGRESSION: FailureClass.WORKLOAD,
    Cause.UNKNOWN: FailureClass.UNKNOWN,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PastFailure:
    """An earlier failed attempt of the same segment, and whether training has progressed since."""

    cause: Cause
    node: str | None
    step: int | None
    is_before_progress: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """All that a decision may depend on.

    `diagnosis` is None when every stage accepted. `is_finished` says that the segment's last step was reached and
    verified; an attempt stopped by a signal or the wall clock is healthy but not finished. `has_enough_nodes` says that
    enough nodes that are not cordoned would be left without the one the diagnosis names.
    """

    diagnosis: Diagnosis | None
    history: tuple[PastFailure, ...]
    attempts: int
    is_finished: bool
    is_stop_requested: bool
    is_breaker_open: bool
    has_enough_nodes: bool
    settings: PolicyConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What the policy chose, the row that chose it, and why in words."""

    action: Action
    row: str
    message: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: the first whose condition holds decides."""

    name: str
    applies: Callable[[Case], bool]
    action: Action
    message: str


def _is(*causes: Cause) -> Callable[[Case], bool]:
    return lambda case: case.diagnosis is not None and case.diagnosis.cause in causes


def spent(case: Case, failure_class: FailureClass) -> int:
    """Failed attempts of a class since the last progress, this one included."""
    past = [failure for failure in case.history if not failure.is_before_progress]
    causes = [failure.cause for failure in past] + ([case.diagnosis.cause] if case.diagnosis else [])
    return sum(CLASS_OF[cause] is failure_class for cause in causes)


def _is_budget_spent(case: Case) -> bool:
    if case.diagnosis is None:
        return False
    failure_class = CLASS_OF[case.diagnosis.cause]
    budgets = {
        FailureClass.INFRASTRUCTURE: case.settings.infrastructure_budget,
        FailureClass.WORKLOAD: case.settings.workload_budget,
        FailureClass.UNKNOWN: case.settings.unknown_budget,
    }
    return spent(case, failure_class) > budgets[failure_class]


def _is_same_node_again(case: Case) -> bool:
    """Whether the node crashed or hung often enough. That it read the damaged shard first, say, speaks not against it."""
    if case.diagnosis is None or case.diagnosis.node is None:
        return False
    before = sum(failure.node == case.diagnosis.node and failure.cause in _NODE_CAUSES for failure in case.history)
    return before + 1 >= case.settings.failures_before_replace


def _is_replaceable_again(case: Case) -> bool:
    """A node that only crashes is better than none: without another in its place the experiment would stand still."""
    return _is_same_node_again(case) and case.has_enough_nodes


def _are_nodes_missing(case: Case) -> bool:
    """Whether too few are left to be gated again. One of which a gate could not tell counts: perhaps its process was killed."""
    return _is(Cause.NODE_UNHEALTHY)(case) and not case.has_enough_nodes


def _is_same_step_again(case: Case) -> bool:
    if case.diagnosis is None or case.diagnosis.step is None:
        return False
    found = case.diagnosis
    return any(failure.cause is found.cause and failure.step == found.step for failure in case.history)


def _both(first: Callable[[Case], bool], second: Callable[[Case], bool]) -> Callable[[Case], bool]:
    return lambda case: first(case) and second(case)


def _is_store_full(case: Case) -> bool:
    found = case.diagnosis
    return found is not None and found.cause is Cause.STORAGE_UNAVAILABLE and found.evidence.get("error") == "StorageFull"


_NODE_CAUSES = (Cause.PROCESS_CRASH, Cause.HANG)
_CRASH = _is(*_NODE_CAUSES)

TABLE: tuple[Row, ...] = (
    Row(
        "stop_requested", lambda case: case.is_stop_requested and not case.is_finished, Action.STOP, "an operator asked for it"
    ),
    Row("finished", lambda case: case.diagnosis is None and case.is_finished, Action.ACCEPT, "the checkpoint is verified"),
    Row("config_error", _is(Cause.CONFIG_ERROR), Action.STOP, "a configuration error does not heal; correct it and run again"),
    Row("fenced", _is(Cause.FENCED), Action.STOP, "another attempt holds the token"),
    Row("ceiling", lambda case: case.attempts >= case.settings.ceiling, Action.STOP, "the ceiling of attempts is reached"),
    Row("interrupted", lambda case: case.diagnosis is None, Action.RETRY_SAME_NODES, "interrupted in good health; going on"),
    Row("budget_spent", _is_budget_spent, Action.ASK, "the budget of this class of failures is spent without progress"),
    Row("breaker_open", lambda case: case.is_breaker_open, Action.ASK, "too many nodes were excluded in a short time"),
    Row(
        "unhealthy_node",
        lambda case: _is(Cause.NODE_UNHEALTHY)(case) and case.diagnosis is not None and case.diagnosis.node is not None,
        Action.REPLACE_NODE,
        "the node failed its checks",
    ),
    Row("too_few_nodes", _are_nodes_missing, Action.ASK, "fewer healthy nodes than needed; a person repairs some"),
    Row("nodes_in_doubt", _is(Cause.NODE_UNHEALTHY), Action.RETRY_SAME_NODES, "enough are left that may pass; gated again"),
    Row("same_node_again", _both(_CRASH, _is_replaceable_again), Action.REPLACE_NODE, "the same node failed again"),
    Row(
        "same_node_kept", _both(_CRASH, _is_same_node_again), Action.RETRY_SAME_NODES, "failed again, and none takes its place"
    ),
    Row("crashed", _CRASH, Action.RETRY_SAME_NODES, "a first failure; the same nodes, from the newest good checkpoint"),
    Row("vanished", _is(Cause.VANISHED), Action.RETRY_SAME_NODES, "no record, no success; trying again"),
    Row("storage_full", _is_store_full, Action.ASK, "trying again does not make room; a person does"),
    Row("storage_away", _is(Cause.STORAGE_UNAVAILABLE), Action.RETRY_SAME_NODES, "the object store was away; trying again"),
    Row("poisoned_window", _both(_is(Cause.NON_FINITE), _is_same_step_again), Action.ROLL_BACK_AND_SKIP, "the batch again"),
    Row("non_finite", _is(Cause.NON_FINITE), Action.ROLL_BACK, "rolled back; if it comes again, the batch is skipped"),
    Row("bad_checkpoint", _is(Cause.CHECKPOINT_INVALID), Action.ROLL_BACK, "back to the newest checkpoint that passes"),
    Row("bad_shard", _is(Cause.DATA_CORRUPT), Action.RETRY_SAME_NODES, "the shard is rebuilt from the corpus first"),
    Row("out_of_memory", _is(Cause.OUT_OF_MEMORY), Action.ASK, "the same configuration will not fit a second time"),
    Row("quality_regression", _is(Cause.QUALITY_REGRESSION), Action.ASK, "quality fell; a person decides what follows"),
    Row("unknown", lambda case: True, Action.RETRY_SAME_NODES, "not classified; trying again within the budget"),
)


def decide(case: Case) -> Choice:
    """The one decision for a case."""
    row = next(row for row in TABLE if row.applies(case))
    return Choice(action=row.action, row=row.name, message=row.message)
