"""The graph of one segment, as data: steps, branches, edges and the number of rungs.

The DAG and, later, the pipeline are written by hand and thin; a test holds that both have exactly these edges. A branch
of a rung is a step of its own, so that the page shows which recovery was taken.

    prepare_data -> open_segment -> attempt_0 -> attempt_1 -> attempt_2 -> close_segment
    attempt_n = open_attempt -> gate_node (one a node) -> gate_fabric -> train_segment -> validate_checkpoint -> verdict
    accept -> evaluate -> promote -> close_segment -> continue_experiment
"""

import itertools
from enum import StrEnum

from prunella.records import Action

#: Attempts inside one DAG run. A run that used them all closes; another run of the segment may open, within the ceiling.
RUNGS = 3

#: How long `ask` waits for a person before it stops, in seconds. Source: own choice 2026-11: someone wakes up within an hour.
ASK_TIMEOUT_S = 3600.0

RECOVERIES = (Action.RETRY_SAME_NODES, Action.REPLACE_NODE, Action.ROLL_BACK, Action.ROLL_BACK_AND_SKIP)

EXHAUSTED = "exhausted"


class Step(StrEnum):
    """What a task does. Steps of a rung are repeated in each."""

    PREPARE_DATA = "prepare_data"
    OPEN_SEGMENT = "open_segment"
    OPEN_ATTEMPT = "open_attempt"
    GATE_NODE = "gate_node"
    GATE_FABRIC = "gate_fabric"
    TRAIN_SEGMENT = "train_segment"
    VALIDATE_CHECKPOINT = "validate_checkpoint"
    VERDICT = "verdict"
    EVALUATE = "evaluate"
    PROMOTE = "promote"
    CLOSE_SEGMENT = "close_segment"
    CONTINUE_EXPERIMENT = "continue_experiment"


RUNG_CHAIN = (
    Step.OPEN_ATTEMPT,
    Step.GATE_NODE,
    Step.GATE_FABRIC,
    Step.TRAIN_SEGMENT,
    Step.VALIDATE_CHECKPOINT,
    Step.VERDICT,
)


def rung_name(rung: int) -> str:
    """Name of a rung's task group."""
    return f"attempt_{rung}"


def in_rung(rung: int, name: str) -> str:
    """Task id of a step or branch of a rung."""
    return f"{rung_name(rung)}.{name}"


def is_last(rung: int) -> bool:
    """Whether no rung follows."""
    return rung == RUNGS - 1


def branches(rung: int) -> tuple[str, ...]:
    """Names of the branches a rung's verdict can take."""
    if is_last(rung):
        return (Action.ACCEPT.value, EXHAUSTED, Action.STOP.value)
    return (Action.ACCEPT.value, *(action.value for action in RECOVERIES), Action.ASK.value, Action.STOP.value)


def branch_of(action: Action, rung: int) -> str:
    """Task id of the branch an action takes in a rung. On the last rung there is nowhere to recover to."""
    name = action.value if action.value in branches(rung) else EXHAUSTED
    return in_rung(rung, name)


def successors(rung: int, branch: str) -> tuple[str, ...]:
    """Task ids that follow a branch."""
    if branch == Action.ACCEPT:
        return (Step.EVALUATE.value,)
    if branch in (Action.STOP, EXHAUSTED):
        return (Step.CLOSE_SEGMENT.value,)
    following = in_rung(rung + 1, Step.OPEN_ATTEMPT)
    return (following, Step.CLOSE_SEGMENT.value) if branch == Action.ASK else (following,)


def unreachable_from(rung: int, taken: str) -> tuple[str, ...]:
    """Task ids that can no longer run once a rung's verdict took the branch with task id `taken`.

    Airflow would find out by itself, one layer of the graph at a time; naming them saves those rounds.
    """
    others = tuple(in_rung(rung, branch) for branch in branches(rung) if in_rung(rung, branch) != taken)
    branch = taken.rpartition(".")[2]
    if branch in (*RECOVERIES, Action.ASK):
        return others
    later = tuple(
        in_rung(number, name)
        for number in range(rung + 1, RUNGS)
        for name in (*(s.value for s in RUNG_CHAIN), *branches(number))
    )
    return others + later + (() if branch == Action.ACCEPT else (Step.EVALUATE.value, Step.PROMOTE.value))


def edges() -> frozenset[tuple[str, str]]:
    """Every edge of the graph, as (upstream task id, downstream task id)."""
    found = {
        (Step.PREPARE_DATA.value, Step.OPEN_SEGMENT.value),
        (Step.OPEN_SEGMENT.value, in_rung(0, Step.OPEN_ATTEMPT)),
        (Step.EVALUATE.value, Step.PROMOTE.value),
        (Step.PROMOTE.value, Step.CLOSE_SEGMENT.value),
        (Step.CLOSE_SEGMENT.value, Step.CONTINUE_EXPERIMENT.value),
    }
    for rung in range(RUNGS):
        found |= {(in_rung(rung, a), in_rung(rung, b)) for a, b in itertools.pairwise(RUNG_CHAIN)}
        for branch in branches(rung):
            found.add((in_rung(rung, Step.VERDICT), in_rung(rung, branch)))
            found |= {(in_rung(rung, branch), successor) for successor in successors(rung, branch)}
    return frozenset(found)
