"""What `prunella node list|cordon|uncordon` does, without the printing."""

from dataclasses import dataclass

from prunella.codec import suggest
from prunella.errors import ConfigError
from prunella.fleet.lifecycle import Fleet, Owner
from prunella.fleet.roster import FleetNode
from prunella.records import NodeState
from prunella.storage import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeRow:
    """A line of `prunella node list`. The last four fields are empty or None for a node nobody has looked at."""

    name: str
    role: str
    devices: int | None
    state: NodeState
    owner: str = ""
    reason: str = ""
    at_ns: int | None = None
    is_override: bool = False


def node_table(store: Store, fleet: tuple[FleetNode, ...]) -> tuple[NodeRow, ...]:
    """One row a node, in roster order; then nodes that the ledger knows and the roster does not, role `unlisted`."""
    listed = {node.name: node for node in fleet}
    unlisted = [name for name in store.list("fleet/nodes") if name not in listed]
    return tuple(_row(Fleet(store), name, listed.get(name)) for name in [*listed, *unlisted])


def _row(ledger: Fleet, name: str, node: FleetNode | None) -> NodeRow:
    role, devices = ("unlisted", None) if node is None else (node.role.value, node.devices)
    last = ledger.last(name)
    if last is None:
        return NodeRow(name=name, role=role, devices=devices, state=NodeState.NEW)
    return NodeRow(
        name=name,
        role=role,
        devices=devices,
        state=last.state,
        owner=last.owner,
        reason=last.reason,
        at_ns=last.at_ns,
        is_override=last.is_override,
    )


def cordon_node(store: Store, fleet: tuple[FleetNode, ...], node: str, *, reason: str) -> NodeState:
    """Take a node out of use on an operator's word. Raises ConfigError for an unknown node or an empty reason."""
    _check_known(store, fleet, node)
    return Fleet(store).cordon(node, Owner.OPERATOR, reason)


def uncordon_node(
    store: Store, fleet: tuple[FleetNode, ...], node: str, *, reason: str, is_override: bool = False
) -> NodeState:
    """Give a node back after repair: `returned`, so that a gate decides; with an override `available`, on record.

    Raises:
        ConfigError: unknown node, empty reason, or the node is not cordoned.
    """
    _check_known(store, fleet, node)
    return Fleet(store).uncordon(node, Owner.OPERATOR, reason, is_override=is_override)


def _check_known(store: Store, fleet: tuple[FleetNode, ...], node: str) -> None:
    known = sorted({*(entry.name for entry in fleet), *store.list("fleet/nodes")})
    if node not in known:
        raise ConfigError(f"there is no node {node!r} in this fleet{suggest(node, known)}")
