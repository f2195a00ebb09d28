"""Sweeping the fleet with real gates: idle nodes are checked, and a node that a gate had cordoned returns after two passes."""

import dataclasses
from pathlib import Path

import pytest

from prunella.fleet.lifecycle import Fleet, Owner
from prunella.orchestration.sweep import BUSY, gate_swept_node, node_of, open_sweep
from prunella.records import NodeState
from prunella.storage import FolderStore, create_root
from unit.orchestration.story import CONFIG, NODES, Story


def sweep(root: str, run_id: str) -> dict[str, str]:
    """One whole sweep: the state of each node that it gated."""
    return {node_of(key): str(gate_swept_node(root, key)) for key in open_sweep(root, None, run_id)}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path / "scratch"))
    create_root(str(tmp_path / "root"))
    return str(tmp_path / "root")


def test_sweep_admits_new_nodes_and_returns_a_cordoned_one_only_after_two_passes(root: str) -> None:
    Story(root=root).begin()
    fleet = Fleet(FolderStore(root))
    fleet.cordon("node-1", Owner.GATE, "matrix_product: 4e6 ulps")
    fleet.cordon("node-2", Owner.OPERATOR, "smells of smoke")

    first, second = sweep(root, "scheduled__1"), sweep(root, "scheduled__2")

    assert first == {"node-0": NodeState.AVAILABLE, "node-1": NodeState.RETURNED}
    assert second == {"node-0": NodeState.AVAILABLE, "node-1": NodeState.AVAILABLE}
    assert fleet.state("node-2") is NodeState.CORDONED, "a person's cordon is a person's to lift"


def test_without_a_file_the_nodes_of_the_experiments_are_swept(root: str, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("nodes:\n  - name: ward-0\n  - name: ward-1\n")
    gone = tmp_path / "gone.yaml"
    Story(root=root, name="warded", config=dataclasses.replace(CONFIG, fleet=str(fleet))).begin()
    Story(root=root, name="orphaned", config=dataclasses.replace(CONFIG, fleet=str(gone))).begin()

    assert [node_of(key) for key in open_sweep(root, None, "scheduled__1")] == ["ward-0", "ward-1"]


def test_before_the_first_experiment_there_is_nothing_to_sweep_but_what_a_file_names(root: str, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("nodes:\n  - name: ward-0\n")

    assert open_sweep(root, None, "scheduled__1") == []
    assert [node_of(key) for key in open_sweep(root, str(fleet), "scheduled__2")] == ["ward-0"]


def test_a_node_that_an_attempt_took_up_since_is_left_in_peace(root: str) -> None:
    story = Story(root=root).begin()
    keys = open_sweep(root, None, "scheduled__1")
    story.open_attempt(story.open_run(0), 0)

    assert {gate_swept_node(root, key) for key in keys if node_of(key) in {node.name for node in NODES}} == {BUSY}
    assert Fleet(FolderStore(root)).events("node-0") == []


def test_sweep_of_one_dag_run_is_opened_once(root: str) -> None:
    Story(root=root).begin()
    first = open_sweep(root, None, "scheduled__1")

    assert first
    assert open_sweep(root, None, "scheduled__1") == first
