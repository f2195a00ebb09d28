"""Sweeps choose idle nodes and return repaired ones after two passes; commands say what they did."""

from pathlib import Path

import pytest

from prunella.errors import Cause, ConfigError
from prunella.fleet.commands import cordon_node, node_table, uncordon_node
from prunella.fleet.gate_results import apply_gate_fabric, apply_gate_node
from prunella.fleet.lifecycle import Fleet, Owner
from prunella.fleet.roster import load_fleet
from prunella.fleet.sweep import busy_nodes, nodes_to_sweep, sweep_requests
from prunella.ledger import Ledger
from prunella.records import (
    AttemptOpened,
    CheckResult,
    ExperimentRecord,
    FailedRecord,
    Failure,
    GateFabricRecord,
    GateNodeRecord,
    Health,
    NodeRef,
    NodeState,
    Outcome,
    SegmentClosed,
    SegmentOpened,
    Stage,
    Verdict,
)
from prunella.storage import FolderStore

FLEET = load_fleet(None, nodes=2)
VERDICTS = {Health.HEALTHY: Verdict.ACCEPTED, Health.UNHEALTHY: Verdict.REJECTED, Health.UNKNOWN: Verdict.UNKNOWN}


def node_record(health: Health, node: str = "node-1") -> GateNodeRecord:
    check = CheckResult(
        name="matrix_product", node=node, health=health, value=4e6, unit="ulps", reference="at most 64 ulps", duration_ms=1.0
    )
    failure = None if health is Health.HEALTHY else Failure(cause=Cause.NODE_UNHEALTHY, message="bad", node=node)
    return GateNodeRecord(
        stage=Stage.GATE_NODE,
        verdict=VERDICTS[health],
        started_ns=0,
        ended_ns=1,
        failure=failure,
        node=node,
        health=health,
        checks=(check,),
    )


def test_a_node_the_gate_cordoned_is_available_again_after_two_passed_sweeps(tmp_path: Path) -> None:
    fleet = Fleet(FolderStore(str(tmp_path)))
    apply_gate_node(fleet, "node-1", node_record(Health.UNHEALTHY), key="k0")

    states = [
        apply_gate_node(fleet, "node-1", node_record(health), key="k", owner=Owner.SWEEP)
        for health in (Health.UNHEALTHY, Health.UNKNOWN, Health.HEALTHY, Health.HEALTHY)
    ]

    assert states == [NodeState.CORDONED, NodeState.CORDONED, NodeState.RETURNED, NodeState.AVAILABLE]
    assert "matrix_product: 4e+06 ulps, expected at most 64 ulps" in fleet.events("node-1")[0].reason


@pytest.mark.parametrize("owner", [Owner.OPERATOR, Owner.POLICY])
def test_a_pass_does_not_refute_a_person_or_the_policy(tmp_path: Path, owner: Owner) -> None:
    fleet = Fleet(FolderStore(str(tmp_path)))
    fleet.cordon("node-1", owner, "not to be used")

    state = apply_gate_node(fleet, "node-1", node_record(Health.HEALTHY), key="k", owner=Owner.SWEEP)

    assert state is NodeState.CORDONED
    assert "node-1" not in [n.name for n in nodes_to_sweep(FLEET, {"node-1": fleet.last("node-1")}, busy=frozenset())]


def test_a_store_outage_during_the_gate_cordons_nobody(tmp_path: Path) -> None:
    fleet = Fleet(FolderStore(str(tmp_path)))
    fleet.admit("node-1", Owner.GATE, "passed")
    failure = Failure(cause=Cause.STORAGE_UNAVAILABLE, message="store is away")
    failed = FailedRecord(stage=Stage.GATE_NODE, verdict=Verdict.REJECTED, started_ns=0, ended_ns=1, failure=failure)

    state = apply_gate_node(fleet, "node-1", failed, key="k")

    assert state is NodeState.RETURNED
    assert "store is away" in fleet.events("node-1")[-1].reason


def test_a_gate_without_a_record_is_doubt(tmp_path: Path) -> None:
    fleet = Fleet(FolderStore(str(tmp_path)))

    assert apply_gate_node(fleet, "node-1", None, key="k") is NodeState.RETURNED


def test_the_fabrics_verdict_moves_only_the_nodes_it_concluded_about(tmp_path: Path) -> None:
    fleet = Fleet(FolderStore(str(tmp_path)))
    for name in ("node-0", "node-1", "node-2"):
        fleet.admit(name, Owner.GATE, "passed")
    record = GateFabricRecord(
        stage=Stage.GATE_FABRIC,
        verdict=Verdict.REJECTED,
        started_ns=0,
        ended_ns=1,
        failure=Failure(cause=Cause.NODE_UNHEALTHY, message="too few nodes"),
        admitted=(),
        health={"node-1": Health.UNKNOWN, "node-2": Health.UNHEALTHY},
        checks=(),
    )

    states = apply_gate_fabric(fleet, record, key="k")

    assert states == {"node-1": NodeState.RETURNED, "node-2": NodeState.CORDONED}
    assert fleet.state("node-0") is NodeState.AVAILABLE


def test_a_sweep_gates_every_idle_node_and_leaves_busy_ones_alone(tmp_path: Path) -> None:
    fleet = Fleet(FolderStore(str(tmp_path)))
    fleet.cordon("node-2", Owner.GATE, "bad")
    last = {node.name: fleet.last(node.name) for node in FLEET}

    nodes = nodes_to_sweep(FLEET, last, busy=frozenset({"node-0"}))

    assert [node.name for node in nodes] == ["node-1", "node-2"]


def test_sweep_requests_belong_to_no_experiment_and_have_keys_of_their_own(tmp_path: Path) -> None:
    requests = sweep_requests(str(tmp_path), "20261121t0220", (NodeRef(name="node-1", devices=2),), config_digest="d")

    assert [(r.node, r.experiment, r.output) for r in requests] == [
        ("node-1", "", "fleet/sweeps/20261121t0220/records/node-1.json")
    ]
    assert requests[0].nodes[0].devices == 2


def open_experiment(store: FolderStore) -> Ledger:
    ledger = Ledger(store, "exp")
    ledger.put(
        ledger.experiment_key,
        ExperimentRecord(name="exp", opened_ns=0, config={}, config_digest="d", faults=(), versions={}),
    )
    ledger.open_run(SegmentOpened(segment=0, run_index=0, run_id="r", opened_ns=0))
    nodes = tuple(node.ref for node in FLEET)
    ledger.open_attempt(AttemptOpened(segment=0, attempt=0, run_index=0, run_id="r", rung=0, opened_ns=0, nodes=nodes))
    return ledger


def test_nodes_are_busy_from_the_attempts_opening_to_the_segments_close(tmp_path: Path) -> None:
    store = FolderStore(str(tmp_path))
    ledger = open_experiment(store)
    gating = busy_nodes(store)
    admitted = GateFabricRecord(
        stage=Stage.GATE_FABRIC,
        verdict=Verdict.ACCEPTED,
        started_ns=0,
        ended_ns=1,
        admitted=(NodeRef(name="node-0"),),
        health={},
        checks=(),
    )
    ledger.put(ledger.record_key(0, 0, Stage.GATE_FABRIC), admitted)
    training = busy_nodes(store)
    close = SegmentClosed(
        segment=0, run_index=0, run_id="r", outcome=Outcome.STOPPED, message="stopped", opened_ns=0, closed_ns=1
    )
    ledger.put(ledger.close_key(0, 0), close)

    closed = busy_nodes(store)

    assert (gating, training, closed) == ({"node-0", "node-1", "node-2"}, {"node-0"}, frozenset())


def test_nodes_stay_busy_when_a_newer_run_of_the_segment_lost_its_token_and_closed(tmp_path: Path) -> None:
    store = FolderStore(str(tmp_path))
    ledger = open_experiment(store)
    nodes = tuple(node.ref for node in FLEET)
    ledger.open_run(SegmentOpened(segment=0, run_index=1, run_id="s", opened_ns=0))
    for attempt, run_index in ((1, 1), (2, 0)):
        ledger.open_attempt(
            AttemptOpened(segment=0, attempt=attempt, run_index=run_index, run_id="r", rung=attempt, opened_ns=0, nodes=nodes)
        )
    close = SegmentClosed(
        segment=0, run_index=1, run_id="s", outcome=Outcome.FAILED, message="fenced", opened_ns=0, closed_ns=1
    )
    ledger.put(ledger.close_key(0, 1), close)

    assert busy_nodes(store) == {"node-0", "node-1", "node-2"}


def test_node_table_shows_every_node_with_its_last_word(tmp_path: Path) -> None:
    store = FolderStore(str(tmp_path))
    cordon_node(store, FLEET, "node-1", reason="fan is loud")
    Fleet(store).admit("node-9", Owner.GATE, "passed")

    rows = node_table(store, FLEET)

    assert [(row.name, row.role, row.state, row.reason) for row in rows] == [
        ("node-0", "active", NodeState.NEW, ""),
        ("node-1", "active", NodeState.CORDONED, "fan is loud"),
        ("node-2", "spare", NodeState.NEW, ""),
        ("node-9", "unlisted", NodeState.AVAILABLE, "passed"),
    ]


def test_uncordon_returns_the_node_to_the_gate(tmp_path: Path) -> None:
    store = FolderStore(str(tmp_path))
    cordon_node(store, FLEET, "node-1", reason="fan is loud")

    state = uncordon_node(store, FLEET, "node-1", reason="fan replaced")

    assert state is NodeState.RETURNED


def test_an_unknown_node_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'node-1'"):
        cordon_node(FolderStore(str(tmp_path)), FLEET, "nod-1", reason="typo")
