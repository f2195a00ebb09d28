"""Sweeping the fleet: one gate request a node that nobody trains on, and the answers entered in the node ledger."""

import hashlib
import logging
import time

from prunella import codec
from prunella.config import Config
from prunella.fleet.commands import node_table
from prunella.fleet.gate_results import apply_gate_node
from prunella.fleet.lifecycle import Fleet, Owner
from prunella.fleet.roster import known_fleet
from prunella.fleet.sweep import busy_nodes, nodes_to_sweep, request_key, sweep_requests
from prunella.ledger import Ledger, list_experiments
from prunella.orchestration import cluster_nodes
from prunella.orchestration.ask_stage import Asking, ask
from prunella.records import FailedRecord, GateNodeRecord, GateNodeRequest
from prunella.scratch import attempt_scratch
from prunella.storage import open_patiently

logger = logging.getLogger(__name__)

#: What becomes of a node that an attempt works on by the time its turn comes: it is left in peace.
BUSY = "busy"


def open_sweep(root: str, fleet_file: str | None, run_id: str) -> list[str]:
    """Write the requests of a sweep; returns their keys. A second try of the same run finds them written.

    Args:
        fleet_file: the nodes to look at; None for those of the experiments under the root, which are none before the first.
    """
    ledger = _fleet_ledger(root)
    if fleet_file is None and not list_experiments(ledger.store):
        logger.info("nothing_to_sweep root=%s: no experiment and no fleet file says which nodes there are", root)
        return []
    fleet = known_fleet(ledger.store, fleet_file)
    states = Fleet(ledger.store)
    due = nodes_to_sweep(fleet, {node.name: states.last(node.name) for node in fleet}, busy=busy_nodes(ledger.store))
    sweep = f"{time.strftime('%Y%m%d', time.gmtime())}-{hashlib.sha256(run_id.encode()).hexdigest()[:8]}"
    keys = []
    for request in sweep_requests(root, sweep, due, config_digest=codec.digest(Config())):
        key = request_key(sweep, request.node)
        ledger.put_request(key, request)
        keys.append(key)
    return keys


def node_of(key: str) -> str:
    """Name of the node a sweep's request is about."""
    return key.rsplit("/", 1)[-1].removesuffix(".json")


def gate_swept_node(root: str, key: str) -> str:
    """Gate one node and enter the answer; returns the state the node is in now, or `BUSY`: an attempt took it up meanwhile.

    Whoever waited for the node asks here, when it is its turn: the sweep may have been opened hours before.
    """
    ledger = _fleet_ledger(root)
    request = ledger.find(GateNodeRequest, key)
    assert request is not None, "open_sweep wrote it"
    sweep = key.split("/")[2]
    scratch = attempt_scratch(root, "fleet", 0, 0, opened_ns=0) / sweep
    scratch.mkdir(exist_ok=True)
    asking = Asking(scratch=scratch, node=request.node, timeout_s=Config().gate.node_timeout_s)
    if request.node in busy_nodes(ledger.store):
        logger.info("node_left_in_peace node=%s sweep=%s: an attempt works on it", request.node, sweep)
        return BUSY
    answer = ask(ledger, key, request, asking)
    record = answer if isinstance(answer, GateNodeRecord | FailedRecord) else None
    return apply_gate_node(Fleet(ledger.store), request.node, record, key=request.output, owner=Owner.SWEEP)


def show_on_cluster(root: str, fleet_file: str | None) -> dict[str, str]:
    """Make the cluster's nodes show what the ledger says of each; returns what became of it, by node.

    Raises:
        ConfigError: there is no cluster, or no right to its nodes.
        PrunellaError: its server is away, or it refused a node.
    """
    store = _fleet_ledger(root).store
    shown = cluster_nodes.show_nodes(node_table(store, known_fleet(store, fleet_file)))
    cluster_nodes.check_all_shown(shown)
    return {found.node: found.outcome.value for found in shown}


def _fleet_ledger(root: str) -> Ledger:
    return Ledger(open_patiently(root), "fleet")
