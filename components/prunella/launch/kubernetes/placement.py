"""Onto which nodes pods may go: pinned, kept off, one a node. Pure.

A node of the fleet file is a node of the cluster by the same name, and its label `kubernetes.io/hostname` says so too. The pod
is told by the kubelet on which node it runs; a gate that was put on another one refuses by itself.
"""

from collections.abc import Iterable
from typing import Any

from prunella.errors import ConfigError

#: The label that names a node's host. Source: Kubernetes' well-known labels.
HOST_LABEL = "kubernetes.io/hostname"
#: The taint of a node that Prunella cordoned.
CORDON_TAINT = "prunella.cordoned"


def node_affinity(*, only: Iterable[str] = (), excluded: Iterable[str] = ()) -> dict[str, object]:
    """Kubernetes' node affinity for pods that may go onto `only` these nodes, if any, and off the `excluded` ones.

    Raises:
        ConfigError: a node is in both, so that there would be no place for the pod.
    """
    wanted, unwanted = sorted(set(only)), sorted(set(excluded))
    if both := sorted(set(wanted) & set(unwanted)):
        raise ConfigError(f"node {both[0]!r} is asked for and excluded at once; a node that was excluded may not be admitted")
    expressions: list[dict[str, object]] = []
    if wanted:
        expressions.append({"key": HOST_LABEL, "operator": "In", "values": wanted})
    if unwanted:
        expressions.append({"key": HOST_LABEL, "operator": "NotIn", "values": unwanted})
    if not expressions:
        return {}
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": expressions}]}}


def exclusion(nodes: Iterable[str]) -> dict[str, object]:
    """Kubernetes' node affinity that keeps a pod off these nodes; empty for none."""
    return node_affinity(excluded=nodes)


def one_a_node(labels: dict[str, str]) -> dict[str, Any]:
    """Kubernetes' pod anti-affinity: no two pods with these labels on one host."""
    term = {"labelSelector": {"matchLabels": labels}, "topologyKey": HOST_LABEL}
    return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}


def cordon_tolerations() -> list[dict[str, str]]:
    """Lets the gate of a sweep onto a cordoned node: only a gate can refute a cordon."""
    return [tolerated(key) for key in ("node.kubernetes.io/unschedulable", CORDON_TAINT)]


def tolerated(key: str) -> dict[str, str]:
    """Lets a pod onto nodes that this taint keeps others off."""
    return {"key": key, "operator": "Exists", "effect": "NoSchedule"}
