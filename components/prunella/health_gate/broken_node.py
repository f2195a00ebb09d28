"""The fault `bad-node`: whether this node's arithmetic is to be wrong now.

From the gate of segment K on, until an operator has returned the node after the firing. An attempt's gate fires the fault of
its own experiment; a sweep, which belongs to none, only honours what has fired, so that it does not hand back a broken node.
"""

from prunella.faults import Fault, FaultSwitch
from prunella.ledger import Ledger, list_experiments, node_events
from prunella.records import GateNodeRequest, NodeState


def is_broken(ledger: Ledger, request: GateNodeRequest) -> bool:
    """Fire what is due for `request.node`, and say whether a fired fault still holds it."""
    faults = [(switch, fault) for switch in _switches(ledger, request) for fault in switch.of_kind("bad-node")]
    answers = [_holds(ledger, request, switch, fault) for switch, fault in faults]  # all of them: each may have to fire
    return any(answers)


def _switches(ledger: Ledger, request: GateNodeRequest) -> list[FaultSwitch]:
    names = [request.experiment] if request.experiment else list_experiments(ledger.store)
    ledgers = [Ledger(ledger.store, name) for name in names]
    switches = [entry.fault_switch(segment=request.segment, attempt=request.attempt) for entry in ledgers]
    return [switch for switch in switches if switch is not None]


def _holds(ledger: Ledger, request: GateNodeRequest, switch: FaultSwitch, fault: Fault) -> bool:
    if fault.node != request.node:
        return False
    is_due = bool(request.experiment) and request.segment >= (fault.segment or 0)
    if is_due and switch.fired(fault) is None:
        switch.fire(fault)
    firing = switch.fired(fault)
    return firing is not None and not _is_repaired(ledger, request.node, since_ns=firing.at_ns)


def _is_repaired(ledger: Ledger, node: str, *, since_ns: int) -> bool:
    """A gate also returns a node it could not judge; only an operator's word says that it was repaired."""
    events = node_events(ledger.store, node)
    return any(event.state is NodeState.RETURNED and event.owner == "operator" and event.at_ns > since_ns for event in events)
