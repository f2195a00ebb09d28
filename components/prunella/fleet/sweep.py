"""Which nodes a sweep gates, and the requests it gates them with.

A sweep looks at every node that nobody trains on: new, returned and idle available ones, and cordoned ones whose cordon a
pass can refute. It launches nothing: the orchestration runs `gate_node` for each request and enters the answers with
`gate_results.apply_gate_node(..., owner=Owner.SWEEP)`. Sweeps belong to no experiment (`request.experiment` is empty); their
keys lie under `fleet/sweeps/<id>/`.
"""

from collections.abc import Iterable, Mapping

from prunella.fleet.lifecycle import is_released_by_a_pass
from prunella.fleet.roster import FleetNode
from prunella.ledger import Ledger, check_name, list_experiments
from prunella.records import GateFabricRecord, GateNodeRequest, NodeEvent, NodeRef, NodeState, Stage
from prunella.storage import Store


def nodes_to_sweep(
    fleet: Iterable[FleetNode], last_events: Mapping[str, NodeEvent | None], *, busy: frozenset[str]
) -> tuple[NodeRef, ...]:
    """The nodes a sweep gates, in roster order.

    Args:
        last_events: the newest event of each node; None or absent for a new one.
        busy: names of nodes that train now: gating them would slow the run.
    """

    def is_due(node: FleetNode) -> bool:
        last = last_events.get(node.name)
        is_cordoned = last is not None and last.state is NodeState.CORDONED
        return node.name not in busy and (not is_cordoned or is_released_by_a_pass(last))

    return tuple(node.ref for node in fleet if is_due(node))


def busy_nodes(store: Store) -> frozenset[str]:
    """Names of the nodes that open attempts of any experiment use now: those admitted, before that all it may gate."""
    return frozenset(name for experiment in list_experiments(store) for name in _in_use(Ledger(store, experiment)))


def _in_use(ledger: Ledger) -> tuple[str, ...]:
    segment = 0
    while ledger.runs(segment + 1):
        segment += 1
    runs, attempts = ledger.runs(segment), ledger.attempts(segment)
    if not runs or not attempts:
        return ()
    # Two runs of a segment may be at work; the newer is no more once it lost the token.
    fenced = {attempt.run_index for attempt in attempts} - {attempts[-1].run_index}
    newest = [run for run in runs if run.run_index not in fenced][-1]
    if ledger.closed(segment, newest.run_index) is not None:
        return ()
    key = ledger.record_key(segment, attempts[-1].attempt, Stage.GATE_FABRIC)
    fabric = ledger.find_stage_record(GateFabricRecord, key)
    nodes = fabric.admitted if isinstance(fabric, GateFabricRecord) else attempts[-1].nodes
    return tuple(node.name for node in nodes)


def request_key(sweep: str, node: str) -> str:
    """Key of the request that gates `node` in sweep `sweep`."""
    return f"fleet/sweeps/{check_name(sweep)}/requests/{check_name(node)}.json"


def record_key(sweep: str, node: str) -> str:
    """Key of the GateNodeRecord that answers it."""
    return f"fleet/sweeps/{check_name(sweep)}/records/{check_name(node)}.json"


def sweep_requests(root: str, sweep: str, nodes: Iterable[NodeRef], *, config_digest: str) -> tuple[GateNodeRequest, ...]:
    """One request a node, ready to be written at `request_key(sweep, request.node)`."""
    return tuple(
        GateNodeRequest(
            stage=Stage.GATE_NODE,
            root=root,
            experiment="",
            config_digest=config_digest,
            output=record_key(sweep, node.name),
            nodes=(node,),
            node=node.name,
        )
        for node in nodes
    )
