"""What a node of the cluster is to show of the node ledger: a pure function from a row of the ledger and the node to a patch.

The ledger is the only truth and nothing is read back from the cluster: a cordon is shown as a taint and as `unschedulable`,
with its reason, and every node carries its state and role as labels. What somebody else put on a node stays. A taint is
ours by its key; `unschedulable` is ours only where an annotation of ours says that it was not set before.
"""

from collections.abc import Mapping
from typing import Any

from prunella.fleet.commands import NodeRow
from prunella.launch.kubernetes.placement import CORDON_TAINT
from prunella.launch.kubernetes.pods import Manifest
from prunella.records import NodeState

STATE_LABEL = "prunella.state"
ROLE_LABEL = "prunella.role"
#: Why the ledger has the node cordoned, for whoever asks the cluster.
REASON_ANNOTATION = "prunella.cordon-reason"
#: Remembers that the node was schedulable before we cordoned it, so that our uncordon lifts our cordon only.
OURS_ANNOTATION = "prunella.made-unschedulable"

_EFFECT = "NoSchedule"


def node_patch(row: NodeRow, found: Manifest) -> Manifest | None:
    """The JSON merge patch (RFC 7386) that makes a node show its row; None where it does already.

    It names the version of the node that it was made from, so that the API server refuses it (409) where somebody changed the
    node meanwhile.

    Args:
        found: the node as the API server gave it.
    """
    metadata, spec = found["metadata"], found.get("spec") or {}
    is_cordoned = row.state is NodeState.CORDONED
    was_made = OURS_ANNOTATION in (metadata.get("annotations") or {})
    is_made = is_cordoned and (was_made or not spec.get("unschedulable"))
    wanted: dict[str, Mapping[str, Any]] = {
        "labels": {STATE_LABEL: row.state.value, ROLE_LABEL: row.role},
        "annotations": {
            REASON_ANNOTATION: f"{row.owner}: {row.reason}" if is_cordoned else None,
            OURS_ANNOTATION: "true" if is_made else None,
        },
    }
    about = {name: changed for name, fields in wanted.items() if (changed := _changes(metadata.get(name), fields))}
    of_spec = _changes(
        spec, {"taints": _taints(spec, is_cordoned), "unschedulable": _unschedulable(spec, is_cordoned, was_made)}
    )
    if not about and not of_spec:
        return None
    patch: Manifest = {"metadata": {"resourceVersion": metadata["resourceVersion"], **about}}
    return {**patch, "spec": of_spec} if of_spec else patch


def _taints(spec: Manifest, is_cordoned: bool) -> list[dict[str, str]] | None:
    """The node's taints with ours, or without. A merge patch replaces a list as a whole."""
    taints = spec.get("taints") or []
    others = [taint for taint in taints if (taint["key"], taint["effect"]) != (CORDON_TAINT, _EFFECT)]
    if not is_cordoned:
        return others or None
    return taints if len(others) < len(taints) else [*others, {"key": CORDON_TAINT, "effect": _EFFECT}]


def _unschedulable(spec: Manifest, is_cordoned: bool, was_made: bool) -> bool | None:
    """Set for a cordon; taken away where we had set it, and otherwise left as it is."""
    if is_cordoned:
        return True
    return None if was_made else spec.get("unschedulable")


def _changes(found: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What of `wanted` is different from what is there. None stands for absent, which a list without entries is too."""
    there = found or {}
    return {name: value for name, value in wanted.items() if (there.get(name) or None) != value}
