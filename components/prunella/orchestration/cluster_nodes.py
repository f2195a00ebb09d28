"""Shows the node ledger to the cluster: reads each node, asks `launch/kubernetes/nodes.py` for the patch, and sends it.

One way only, and as often as one likes: a node that shows its row already is sent nothing. A node that the cluster does not
have, or that refuses, is one line and does not stop the others; a server that is away does, and the same call goes on later.
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from prunella.errors import ConfigError, PrunellaError
from prunella.fleet.commands import NodeRow
from prunella.launch.kubernetes.nodes import node_patch
from prunella.launch.kubernetes.pods import Manifest
from prunella.orchestration import cluster

logger = logging.getLogger(__name__)

_MERGE = "application/merge-patch+json"


class Outcome(StrEnum):
    """What became of a node."""

    CHANGED = "changed"
    AS_WANTED = "as wanted"
    NOT_THERE = "not in the cluster"
    REFUSED = "refused"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What became of one node. `detail` is what was sent, or why not."""

    node: str
    outcome: Outcome
    detail: str = ""


def show_nodes(rows: Iterable[NodeRow], *, is_dry_run: bool = False) -> tuple[Shown, ...]:
    """Make every node of the cluster show its row of the ledger.

    Args:
        is_dry_run: read the nodes and say what would be sent.

    Raises:
        ConfigError: there is no cluster, or no right to its nodes.
        PrunellaError: the server is away.
    """
    nodes = _Nodes(is_dry_run)
    return tuple(_told(_show(nodes, row)) for row in rows)


def check_all_shown(shown: Iterable[Shown]) -> None:
    """Raises PrunellaError where the cluster refused a node: it does not show what the ledger says."""
    if bad := [found for found in shown if found.outcome is Outcome.REFUSED]:
        raise PrunellaError(f"{len(bad)} nodes do not show the ledger's word, first {bad[0].node}: {bad[0].detail}")


def _told(shown: Shown) -> Shown:
    level = logging.INFO if shown.outcome in (Outcome.CHANGED, Outcome.AS_WANTED) else logging.WARNING
    logger.log(level, "node_shown node=%s outcome=%s detail=%s", shown.node, shown.outcome, shown.detail)
    return shown


class _Nodes:
    """The cluster's nodes, as far as we touch them. Data, not the client's classes: those drop fields newer than themselves."""

    def __init__(self, is_dry_run: bool) -> None:
        api = cluster.api_client()
        # The client has no parameter for it before 33, and sends a strategic merge by itself, which merges taints by key.
        api.set_default_header("Content-Type", _MERGE)
        from kubernetes.client import CoreV1Api

        self._api = CoreV1Api(api)
        self._is_dry_run = is_dry_run

    def read(self, name: str) -> Manifest:
        found = self._api.read_node(name, _preload_content=False, _request_timeout=cluster.TIMEOUT_S)
        node: Manifest = json.loads(found.data)
        return node

    def patch(self, name: str, patch: Manifest) -> None:
        if not self._is_dry_run:
            self._api.patch_node(name, patch, _preload_content=False, _request_timeout=cluster.TIMEOUT_S)


def _show(nodes: _Nodes, row: NodeRow) -> Shown:
    """One node, read anew where somebody else changed it meanwhile, or where the answer was lost."""
    from kubernetes.client import ApiException

    try:
        return cluster.patiently(lambda: _show_once(nodes, row), also=(cluster.CONFLICT,))
    except ApiException as error:
        return _final(row, error)


def _show_once(nodes: _Nodes, row: NodeRow) -> Shown:
    patch = node_patch(row, nodes.read(row.name))
    if patch is None:
        return Shown(node=row.name, outcome=Outcome.AS_WANTED)
    nodes.patch(row.name, patch)
    return Shown(node=row.name, outcome=Outcome.CHANGED, detail=_summary(patch))


def _final(row: NodeRow, error: Any) -> Shown:
    if error.status in cluster.DENIED:
        raise ConfigError(
            f"node {row.name}: {cluster.words(error)}; bind the ClusterRole prunella-node-keeper (containers/kubernetes) to "
            "whoever runs this"
        ) from error
    if error.status == cluster.NOT_THERE:
        detail = "name nodes in the fleet file as the cluster does"
        return Shown(node=row.name, outcome=Outcome.NOT_THERE, detail=detail)
    return Shown(node=row.name, outcome=Outcome.REFUSED, detail=cluster.words(error))


def _summary(patch: Manifest) -> str:
    """What a patch changes, on one line."""
    metadata = {name: value for name, value in patch["metadata"].items() if name != "resourceVersion"}
    return json.dumps({**metadata, **patch.get("spec", {})})
