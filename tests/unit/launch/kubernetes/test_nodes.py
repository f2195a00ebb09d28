"""What a node of the cluster is sent, as data. Against a server: `tests/orchestrator/test_nodes.py`."""

from typing import Any

import pytest

from prunella.fleet.commands import NodeRow
from prunella.launch.kubernetes.nodes import node_patch
from prunella.launch.kubernetes.placement import CORDON_TAINT, cordon_tolerations
from prunella.records import NodeState

OURS = {"key": CORDON_TAINT, "effect": "NoSchedule"}
CORDONED = NodeRow(name="node-1", role="active", devices=8, state=NodeState.CORDONED, owner="gate", reason="slow")
FREE = NodeRow(name="node-1", role="active", devices=8, state=NodeState.AVAILABLE)


def node(spec: dict[str, Any], **annotations: str) -> dict[str, Any]:
    """A node that shows `FREE` already, but for its annotations and spec."""
    labels = {"prunella.state": "available", "prunella.role": "active"}
    own = {f"prunella.{name.replace('_', '-')}": value for name, value in annotations.items()}
    return {"metadata": {"name": "node-1", "resourceVersion": "7", "labels": labels, "annotations": own}, "spec": spec}


def test_a_patch_names_the_version_it_was_made_from_and_only_what_changes() -> None:
    patch = node_patch(CORDONED, node({}))

    assert patch == {
        "metadata": {
            "resourceVersion": "7",
            "labels": {"prunella.state": "cordoned"},
            "annotations": {"prunella.cordon-reason": "gate: slow", "prunella.made-unschedulable": "true"},
        },
        "spec": {"taints": [OURS], "unschedulable": True},
    }


@pytest.mark.parametrize("spec", [{}, {"unschedulable": True}, {"taints": [{"key": "gpu", "effect": "NoSchedule"}]}])
def test_a_node_that_is_not_cordoned_keeps_whatever_others_put_on_it(spec: dict[str, Any]) -> None:
    assert node_patch(FREE, node(spec)) is None


def test_a_taint_of_our_key_with_another_effect_is_not_ours() -> None:
    theirs = {"key": CORDON_TAINT, "effect": "NoExecute"}
    found = node({"taints": [theirs, OURS], "unschedulable": True}, cordon_reason="gate: slow", made_unschedulable="true")

    patch = node_patch(FREE, found)

    assert patch is not None
    assert patch["spec"] == {"taints": [theirs], "unschedulable": None}
    assert patch["metadata"]["annotations"] == {"prunella.cordon-reason": None, "prunella.made-unschedulable": None}


def test_another_reason_for_the_same_cordon_is_shown() -> None:
    found = node({"taints": [OURS], "unschedulable": True}, cordon_reason="operator: smoke", made_unschedulable="true")
    found["metadata"]["labels"]["prunella.state"] = "cordoned"

    assert node_patch(CORDONED, found) == {
        "metadata": {"resourceVersion": "7", "annotations": {"prunella.cordon-reason": "gate: slow"}}
    }


def test_a_gate_tolerates_the_taint_of_a_cordon() -> None:
    assert OURS["key"] in {toleration["key"] for toleration in cordon_tolerations()}
