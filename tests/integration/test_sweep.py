"""Sweeping the fleet with real gates: idle nodes are checked, and a node that a gate had cordoned returns after two passes."""

from pathlib import Path

import pytest

from prunella.fleet.lifecycle import Fleet, Owner
from prunella.orchestration.sweep import gate_swept_node, node_of, open_sweep
from prunella.records import NodeState
from prunella.storage import FolderStore, create_root


def sweep(root: str, run_id: str) -> dict[str, str]:
    """One whole sweep: the state of each node that it gated."""
    return {node_of(key): str(gate_swept_node(root, key)) for key in open_sweep(root, None, run_id)}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path / "scratch"))
    create_root(str(tmp_path / "root"))
    return str(tmp_path / "root")


def test_sweep_admits_new_nodes_and_returns_a_cordoned_one_only_after_two_passes(root: str) -> None:
    fleet = Fleet(FolderStore(root))
    fleet.cordon("node-1", Owner.GATE, "matrix_product: 4e6 ulps")
    fleet.cordon("node-2", Owner.OPERATOR, "smells of smoke")

    first, second = sweep(root, "scheduled__1"), sweep(root, "scheduled__2")

    assert first == {"node-0": NodeState.AVAILABLE, "node-1": NodeState.RETURNED}
    assert second == {"node-0": NodeState.AVAILABLE, "node-1": NodeState.AVAILABLE}
    assert fleet.state("node-2") is NodeState.CORDONED, "a person's cordon is a person's to lift"


def test_sweep_of_one_dag_run_is_opened_once(root: str) -> None:
    first = open_sweep(root, None, "scheduled__1")

    assert open_sweep(root, None, "scheduled__1") == first
