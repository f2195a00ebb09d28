"""The node ledger: states come from folding events, moves from one table, races end in one event."""

import threading
from itertools import count
from pathlib import Path

import pytest

from prunella.config import GateConfig
from prunella.errors import ConfigError
from prunella.fleet.lifecycle import TRANSITIONS, Fleet, Owner, check_transition
from prunella.ledger import node_event_key
from prunella.records import NodeState
from prunella.storage import FolderStore

SECOND_NS = 10**9


def make_fleet(root: Path, *, start_ns: int = 0) -> Fleet:
    ticks = count(start_ns, SECOND_NS)
    return Fleet(FolderStore(str(root)), clock=lambda: next(ticks))


def test_a_node_nobody_looked_at_is_new_and_not_available(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path)

    state = fleet.state("node-0")

    assert state is NodeState.NEW
    assert fleet.last("node-0") is None


def test_the_state_is_the_fold_of_the_events(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path)

    fleet.validate("node-0", Owner.GATE, "gate began")
    fleet.admit("node-0", Owner.GATE, "passed", {"record": "a/b.json"})
    fleet.cordon("node-0", Owner.GATE, "product wrong by 4e6 ulps", {"value": 4e6})
    fleet.uncordon("node-0", Owner.OPERATOR, "board replaced")

    states = [event.state for event in fleet.events("node-0")]
    assert states == [NodeState.VALIDATING, NodeState.AVAILABLE, NodeState.CORDONED, NodeState.RETURNED]
    assert Fleet(FolderStore(str(tmp_path))).state("node-0") is NodeState.RETURNED
    assert fleet.events("node-0")[2].evidence == {"value": 4e6}


def test_a_repaired_node_is_available_only_after_a_pass(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path)
    fleet.cordon("node-1", Owner.GATE, "bad")

    returned = fleet.uncordon("node-1", Owner.OPERATOR, "repaired")
    admitted = fleet.admit("node-1", Owner.GATE, "passed")

    assert (returned, admitted) == (NodeState.RETURNED, NodeState.AVAILABLE)


def test_an_override_makes_a_node_available_and_is_on_record(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path)
    fleet.cordon("node-1", Owner.GATE, "bad")

    fleet.uncordon("node-1", Owner.OPERATOR, "false alarm, see ticket 7", is_override=True)

    event = fleet.events("node-1")[-1]
    assert (event.state, event.is_override, event.owner) == (NodeState.AVAILABLE, True, "operator")


def test_a_passed_gate_never_frees_a_cordoned_node(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path)
    fleet.cordon("node-1", Owner.OPERATOR, "burning")

    state = fleet.admit("node-1", Owner.GATE, "passed")

    assert state is NodeState.CORDONED
    assert len(fleet.events("node-1")) == 1


def test_admitting_an_available_node_adds_nothing(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path)
    fleet.admit("node-0", Owner.GATE, "passed")

    fleet.admit("node-0", Owner.GATE, "passed again")

    assert len(fleet.events("node-0")) == 1


def test_a_doubted_node_is_not_available(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path)
    fleet.admit("node-0", Owner.GATE, "passed")

    state = fleet.doubt("node-0", Owner.GATE, "the gate left no record")

    assert state is NodeState.RETURNED


def test_an_operators_cordon_outranks_the_gates(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path)
    fleet.cordon("node-0", Owner.GATE, "bad")

    fleet.cordon("node-0", Owner.OPERATOR, "out for repair")
    fleet.cordon("node-0", Owner.GATE, "still bad")

    assert [event.owner for event in fleet.events("node-0")] == ["gate", "operator"]


@pytest.mark.parametrize("owner", list(Owner))
def test_moves_outside_the_table_are_refused(owner: Owner) -> None:
    illegal = [(a, b) for a in NodeState for b in NodeState if owner not in TRANSITIONS.get((a, b), ())]

    for before, after in illegal:
        with pytest.raises(ConfigError, match=f"{owner} may not move it from {before} to {after}"):
            check_transition("node-0", before, after, owner)

    assert (NodeState.NEW, NodeState.AVAILABLE) not in illegal or owner in (Owner.POLICY, Owner.OPERATOR)


def test_the_policy_may_cordon_but_not_return(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path)
    fleet.cordon("node-0", Owner.POLICY, "failed twice in one segment")

    with pytest.raises(ConfigError, match="policy may not move it from cordoned to returned"):
        fleet.uncordon("node-0", Owner.POLICY, "try again")


def test_uncordoning_a_node_that_is_not_cordoned_is_an_error(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path)

    with pytest.raises(ConfigError, match="is new, not cordoned"):
        fleet.uncordon("node-0", Owner.OPERATOR, "why not")


def test_a_move_without_a_reason_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a reason"):
        make_fleet(tmp_path).cordon("node-0", Owner.OPERATOR, "  ")


def test_two_racing_cordons_leave_one_event(tmp_path: Path) -> None:
    barrier = threading.Barrier(2)

    class Meeting(FolderStore):
        """A real store whose first two writers meet right before they write."""

        met = 0

        def put_new(self, key: str, data: bytes) -> None:
            if Meeting.met < 2:
                Meeting.met += 1
                barrier.wait(timeout=10)
            super().put_new(key, data)

    fleets = [Fleet(Meeting(str(tmp_path))) for _ in range(2)]
    threads = [threading.Thread(target=fleet.cordon, args=("node-0", Owner.GATE, "bad")) for fleet in fleets]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert Meeting.met == 2
    assert [event.state for event in fleets[0].events("node-0")] == [NodeState.CORDONED]


def test_a_race_between_different_moves_keeps_both_in_order(tmp_path: Path) -> None:
    other = make_fleet(tmp_path)

    class Late(FolderStore):
        """A real store in which another writer comes first, once."""

        is_first = True

        def put_new(self, key: str, data: bytes) -> None:
            if Late.is_first:
                Late.is_first = False
                other.admit("node-0", Owner.GATE, "passed")
            super().put_new(key, data)

    state = Fleet(Late(str(tmp_path))).cordon("node-0", Owner.POLICY, "failed twice")

    assert state is NodeState.CORDONED
    assert [event.state for event in other.events("node-0")] == [NodeState.AVAILABLE, NodeState.CORDONED]
    assert FolderStore(str(tmp_path)).exists(node_event_key("node-0", 1))


def test_the_breaker_opens_when_machines_exclude_more_than_allowed_in_the_window(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path, start_ns=1000 * SECOND_NS)
    names = [f"node-{index}" for index in range(4)]
    gate = GateConfig(max_exclusions=2, exclusion_window_s=60.0)
    fleet.cordon("node-3", Owner.OPERATOR, "planned work")
    for name in names[:2]:
        fleet.cordon(name, Owner.GATE, "bad")
    before = fleet.is_breaker_open(names, gate, now_ns=1010 * SECOND_NS)
    fleet.cordon("node-2", Owner.POLICY, "failed twice")

    after = fleet.is_breaker_open(names, gate, now_ns=1010 * SECOND_NS)
    later = fleet.is_breaker_open(names, gate, now_ns=1063 * SECOND_NS)

    assert (before, after, later) == (False, True, False)
    recent = fleet.recent_exclusions(names, window_s=60.0, now_ns=1010 * SECOND_NS)
    assert [event.node for event in recent] == ["node-0", "node-1", "node-2"]
