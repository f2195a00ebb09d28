"""The roster: what the fleet file may say, and what there is without one."""

from pathlib import Path

import pytest

from prunella.errors import ConfigError
from prunella.fleet.roster import FleetNode, Role, candidates_for_gate, load_fleet
from prunella.records import NodeState


def test_default_fleet_is_two_active_nodes_and_a_spare() -> None:
    fleet = load_fleet(None, nodes=2)

    assert [(node.name, node.role, node.devices) for node in fleet] == [
        ("node-0", Role.ACTIVE, 1),
        ("node-1", Role.ACTIVE, 1),
        ("node-2", Role.SPARE, 1),
    ]


@pytest.mark.parametrize(("nodes", "size"), [(1, 3), (2, 3), (3, 4), (5, 6)])
def test_default_fleet_grows_with_the_experiment_and_keeps_one_spare(nodes: int, size: int) -> None:
    fleet = load_fleet(None, nodes=nodes)

    assert len(fleet) == size
    assert [node.role for node in fleet].count(Role.SPARE) == 1


def test_fleet_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text("nodes:\n- {name: rack1-a, devices: 4}\n- {name: rack1-b, role: spare, devices: 4}\n")

    fleet = load_fleet(str(path), nodes=1)

    assert fleet == (
        FleetNode(name="rack1-a", role=Role.ACTIVE, devices=4),
        FleetNode(name="rack1-b", role=Role.SPARE, devices=4),
    )


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("nodes: [{name: a, colour: red}]", "unknown key 'colour'"),
        ("nodes: [{name: a}, {name: a}]", "'a' is listed twice"),
        ("nodes: [{name: a, role: boss}]", "expected one of active, spare"),
        ("nodes: [{name: a, devices: 0}]", "at least 1 device"),
        ("nodes: [{name: ../etc}]", "name '../etc'"),
        ("nodes: [{name: a}]", "needs 2 nodes, the fleet has 1"),
        ("nodes: [", "not YAML"),
        ("- a", "not a fleet file: expected `nodes:`"),
        ("", "not a fleet file: expected `nodes:`"),
    ],
)
def test_bad_fleet_file_is_refused_with_advice(tmp_path: Path, text: str, advice: str) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=advice) as caught:
        load_fleet(str(path), nodes=2)

    assert "fleet.yaml" in str(caught.value) or "node" in str(caught.value) or "name" in str(caught.value)


def test_missing_fleet_file_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such fleet file"):
        load_fleet(str(tmp_path / "none.yaml"), nodes=2)


def test_candidates_are_active_then_spare_and_never_cordoned() -> None:
    fleet = load_fleet(None, nodes=4)
    states = {"node-1": NodeState.CORDONED, "node-2": NodeState.RETURNED}

    names = [node.name for node in candidates_for_gate(fleet, states)]

    assert names == ["node-0", "node-2", "node-3", "node-4"]
