"""The graph is data: what can be said of it without an orchestrator."""

import itertools
from graphlib import TopologicalSorter

import pytest

from prunella.orchestration import graph
from prunella.orchestration.graph import EXHAUSTED, RECOVERIES, RUNG_CHAIN, RUNGS, Step
from prunella.records import Action

EDGES = graph.edges()
BRANCHES = [(rung, branch) for rung in range(RUNGS) for branch in graph.branches(rung)]
TAKEN = [(rung, graph.in_rung(rung, branch)) for rung, branch in BRANCHES]


def reachable(start: str) -> set[str]:
    """Every step that can still run once `start` did."""
    found, fresh = set[str](), {start}
    while fresh:
        found |= fresh
        fresh = {below for above, below in EDGES if above in fresh} - found
    return found


def test_the_graph_has_no_cycle() -> None:
    order = list(TopologicalSorter({below: {a for a, b in EDGES if b == below} for _, below in EDGES}).static_order())

    assert order[0] == Step.PREPARE_DATA
    assert order[-1] == Step.CONTINUE_EXPERIMENT


def test_every_step_is_reached_from_the_first_and_every_path_ends_in_the_close() -> None:
    steps = set(itertools.chain.from_iterable(EDGES))

    assert reachable(Step.PREPARE_DATA) == steps
    assert all(Step.CLOSE_SEGMENT in reachable(step) for step in steps - {Step.CONTINUE_EXPERIMENT})


def test_the_rungs_follow_each_other_and_each_is_the_whole_chain() -> None:
    for rung in range(RUNGS):
        chain = [graph.in_rung(rung, step) for step in RUNG_CHAIN]
        assert set(itertools.pairwise(chain)) <= EDGES


@pytest.mark.parametrize(("rung", "branch"), BRANCHES)
def test_every_branch_of_every_rung_is_an_edge_with_a_successor(rung: int, branch: str) -> None:
    task = graph.in_rung(rung, branch)

    assert (graph.in_rung(rung, Step.VERDICT), task) in EDGES
    assert {below for above, below in EDGES if above == task} == set(graph.successors(rung, branch))
    assert graph.successors(rung, branch)


@pytest.mark.parametrize("rung", range(RUNGS))
@pytest.mark.parametrize("action", list(Action))
def test_whatever_the_policy_chooses_has_a_branch(action: Action, rung: int) -> None:
    assert graph.branch_of(action, rung) in [graph.in_rung(rung, branch) for branch in graph.branches(rung)]


def test_on_the_last_rung_there_is_nothing_to_recover_to() -> None:
    last = RUNGS - 1

    for action in (*RECOVERIES, Action.ASK):
        assert graph.branch_of(action, last) == graph.in_rung(last, EXHAUSTED)
    assert graph.branch_of(Action.ACCEPT, last) == graph.in_rung(last, Action.ACCEPT)
    assert graph.branch_of(Action.STOP, last) == graph.in_rung(last, Action.STOP)


@pytest.mark.parametrize("rung", range(RUNGS - 1))
def test_a_recovery_leads_to_the_next_rung_only_and_a_question_also_to_the_close(rung: int) -> None:
    following = graph.in_rung(rung + 1, Step.OPEN_ATTEMPT)

    assert {graph.successors(rung, recovery) for recovery in RECOVERIES} == {(following,)}
    assert graph.successors(rung, Action.ASK) == (following, Step.CLOSE_SEGMENT)


@pytest.mark.parametrize(("rung", "taken"), TAKEN)
def test_a_step_that_can_still_run_is_never_named_as_unreachable(rung: int, taken: str) -> None:
    assert reachable(taken).isdisjoint(graph.unreachable_from(rung, taken))


@pytest.mark.parametrize(("rung", "taken"), TAKEN)
def test_everything_that_cannot_run_any_more_is_named(rung: int, taken: str) -> None:
    done = {step for step in itertools.chain.from_iterable(EDGES) if graph.in_rung(rung, Step.VERDICT) in reachable(step)}
    earlier = {graph.in_rung(number, branch) for number in range(rung) for branch in graph.branches(number)}
    lost = set(itertools.chain.from_iterable(EDGES)) - done - earlier - reachable(taken)

    assert set(graph.unreachable_from(rung, taken)) == lost


@pytest.mark.parametrize(("rung", "taken"), TAKEN)
def test_what_is_named_is_a_step_of_the_graph_named_once(rung: int, taken: str) -> None:
    named = graph.unreachable_from(rung, taken)

    assert set(named) <= set(itertools.chain.from_iterable(EDGES))
    assert len(set(named)) == len(named)
