"""What a gate's answer means for the node ledger.

Healthy admits, unhealthy cordons, and anything else, silence included, is doubt. A node that no round concluded about
is left as it was: whoever waited for an absent peer is not blamed. Called by the orchestration, never by a stage.
"""

from prunella.fleet.lifecycle import Fleet, Owner
from prunella.records import CheckResult, FailedRecord, GateFabricRecord, GateNodeRecord, Health, Json, NodeState


def apply_gate_node(
    fleet: Fleet, node: str, record: GateNodeRecord | FailedRecord | None, *, key: str, owner: str = Owner.GATE
) -> NodeState:
    """Enter what a gate (or a sweep) said of one node; returns the state it is in now.

    Args:
        record: what stands at `key`; None when nothing does, which is evidence too.
        owner: `sweep` may also return a node that a gate had cordoned; two passes make it available again.
    """
    if not isinstance(record, GateNodeRecord):
        said = "left no record" if record is None or record.failure is None else f"failed: {record.failure.message}"
        return fleet.doubt(node, owner, f"the gate {said}", {"record": key})
    if record.health is Health.HEALTHY and owner == Owner.SWEEP and fleet.state(node) is NodeState.CORDONED:
        return fleet.release(node, "passed the gate of a sweep", {"record": key})
    return _enter(fleet, node, record.health, owner, record.checks, key)


def apply_gate_fabric(fleet: Fleet, record: GateFabricRecord, *, key: str) -> dict[str, NodeState]:
    """Enter what the links showed; returns the state of every node it concluded about."""
    return {
        node: _enter(fleet, node, health, Owner.GATE, tuple(check for check in record.checks if check.node == node), key)
        for node, health in record.health.items()
    }


def _enter(fleet: Fleet, node: str, health: Health, owner: str, checks: tuple[CheckResult, ...], key: str) -> NodeState:
    evidence: dict[str, Json] = {"record": key}
    if health is Health.HEALTHY:
        return fleet.admit(node, owner, "passed the gate", evidence)
    failed = [check for check in checks if check.health is health]
    reason = "; ".join(f"{check.name}: {check.value:g} {check.unit}, expected {check.reference}" for check in failed)
    evidence |= {check.name: check.detail or f"{check.value:g} {check.unit}" for check in failed}
    if health is Health.UNHEALTHY:
        return fleet.cordon(node, owner, reason or "failed the gate", evidence)
    return fleet.doubt(node, owner, reason or "the gate could not tell", evidence)
