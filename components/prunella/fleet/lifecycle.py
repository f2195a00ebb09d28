"""The node ledger: what each node went through, and so what it may be used for.

Events are dense under `fleet/nodes/<name>/`; the state is what folding them gives, and is stored nowhere. Every move
stands in one table with those who may make it; each event names its one owner, a reason and evidence. A node nobody has
looked at is `new`, and only `available` means that the last gate passed: unknown health is never healthy.

    new ------> validating ------> available          gate, sweep
    any ------------------------> cordoned            gate, sweep, policy, operator
    validating, available ------> returned            gate, sweep: its health is not known any more
    cordoned -------------------> returned            operator (repaired), sweep (one pass, if no person or policy cordoned it)
    returned ---> validating ---> available           gate, sweep: a repaired node is used only after a pass (FIELD 6, R8)
    cordoned, returned ---------> available           operator, with a recorded override

`validating` needs no time-out of its own: a gate that died leaves the node there, and the next gate takes it up.
Two writers of one node race for the next key; the loser reads again and decides afresh.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum

from prunella.config import GateConfig
from prunella.errors import ConfigError, KeyExists
from prunella.fleet.roster import FleetNode
from prunella.ledger import node_event_key, node_events
from prunella.records import Json, NodeEvent, NodeState, to_bytes
from prunella.storage import Store

logger = logging.getLogger(__name__)


class Owner(StrEnum):
    """Who may move a node."""

    GATE = "gate"
    SWEEP = "sweep"
    POLICY = "policy"
    OPERATOR = "operator"


_CHECKERS = frozenset({Owner.GATE, Owner.SWEEP})
_ANYBODY = frozenset(Owner)
_PERSON = frozenset({Owner.OPERATOR})

#: (from, to) -> who may. What is not here is illegal.
TRANSITIONS: Mapping[tuple[NodeState, NodeState], frozenset[Owner]] = {
    (NodeState.NEW, NodeState.VALIDATING): _CHECKERS,
    (NodeState.NEW, NodeState.AVAILABLE): _CHECKERS,
    (NodeState.NEW, NodeState.RETURNED): _CHECKERS,
    (NodeState.NEW, NodeState.CORDONED): _ANYBODY,
    (NodeState.VALIDATING, NodeState.AVAILABLE): _CHECKERS,
    (NodeState.VALIDATING, NodeState.RETURNED): _CHECKERS,
    (NodeState.VALIDATING, NodeState.CORDONED): _ANYBODY,
    (NodeState.AVAILABLE, NodeState.RETURNED): _CHECKERS,
    (NodeState.AVAILABLE, NodeState.CORDONED): _ANYBODY,
    (NodeState.CORDONED, NodeState.RETURNED): frozenset({Owner.OPERATOR, Owner.SWEEP}),
    (NodeState.CORDONED, NodeState.AVAILABLE): _PERSON,
    (NodeState.CORDONED, NodeState.CORDONED): _PERSON,
    (NodeState.RETURNED, NodeState.VALIDATING): _CHECKERS,
    (NodeState.RETURNED, NodeState.AVAILABLE): _CHECKERS | _PERSON,
    (NodeState.RETURNED, NodeState.CORDONED): _ANYBODY,
}


def fold(events: Iterable[NodeEvent]) -> NodeState:
    """The state a node is in after `events`, oldest first."""
    state = NodeState.NEW
    for event in events:
        state = event.state
    return state


class Fleet:
    """The node ledger of one root. `clock` gives wall-clock nanoseconds."""

    def __init__(self, store: Store, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._store = store
        self._clock = clock

    def events(self, node: str) -> list[NodeEvent]:
        """Everything that happened to a node, oldest first."""
        return node_events(self._store, node)

    def last(self, node: str) -> NodeEvent | None:
        """The event that gave the node its state; None for a new one."""
        events = self.events(node)
        return events[-1] if events else None

    def state(self, node: str) -> NodeState:
        """Where in its life the node is."""
        return fold(self.events(node))

    def states(self, fleet: Iterable[FleetNode]) -> dict[str, NodeState]:
        """State of each node of a roster."""
        return {node.name: self.state(node.name) for node in fleet}

    def validate(self, node: str, owner: str, reason: str, evidence: dict[str, Json] | None = None) -> NodeState:
        """A gate begins. An available node stays so until the gate says otherwise; a cordoned one stays cordoned."""
        states = (NodeState.NEW, NodeState.RETURNED)
        return self._move(node, NodeState.VALIDATING, owner, reason, evidence, only_from=states)

    def admit(self, node: str, owner: str, reason: str, evidence: dict[str, Json] | None = None) -> NodeState:
        """A gate passed: the node is available. A cordoned node stays cordoned: a gate alone frees nobody."""
        states = (NodeState.NEW, NodeState.VALIDATING, NodeState.RETURNED)
        return self._move(node, NodeState.AVAILABLE, owner, reason, evidence, only_from=states)

    def doubt(self, node: str, owner: str, reason: str, evidence: dict[str, Json] | None = None) -> NodeState:
        """A gate could not tell: the node must pass one before it is available again."""
        states = (NodeState.NEW, NodeState.VALIDATING, NodeState.AVAILABLE)
        return self._move(node, NodeState.RETURNED, owner, reason, evidence, only_from=states)

    def cordon(self, node: str, owner: str, reason: str, evidence: dict[str, Json] | None = None) -> NodeState:
        """Take a node out of use. On a cordoned node only a person's word adds anything: it outranks the gate's."""

        def is_news(last: NodeEvent | None) -> bool:
            is_cordoned = last is not None and last.state is NodeState.CORDONED
            return not is_cordoned or (owner == Owner.OPERATOR and last is not None and last.owner != Owner.OPERATOR)

        return self._append(node, NodeState.CORDONED, owner, reason, evidence, is_news=is_news)

    def release(self, node: str, reason: str, evidence: dict[str, Json] | None = None) -> NodeState:
        """A sweep found a node healthy that a gate had cordoned: returned, so one more pass makes it available."""
        return self._append(node, NodeState.RETURNED, Owner.SWEEP, reason, evidence, is_news=is_released_by_a_pass)

    def uncordon(self, node: str, owner: str, reason: str, *, is_override: bool = False) -> NodeState:
        """Give a node back: it must pass a gate before it is available, unless an override says it is now.

        Raises:
            ConfigError: the node is not cordoned (nor returned, with an override), or `owner` may not.
        """
        target = NodeState.AVAILABLE if is_override else NodeState.RETURNED
        allowed = (NodeState.CORDONED, NodeState.RETURNED) if is_override else (NodeState.CORDONED,)

        def is_news(last: NodeEvent | None) -> bool:
            state = NodeState.NEW if last is None else last.state
            if state not in allowed:
                raise ConfigError(f"node {node!r} is {state}, not cordoned; there is nothing to undo")
            return True

        return self._append(node, target, owner, reason, None, is_news=is_news, is_override=is_override)

    def recent_exclusions(self, nodes: Iterable[str], *, window_s: float, now_ns: int) -> tuple[NodeEvent, ...]:
        """Cordons by machines in the last `window_s` seconds, oldest first. A person's cordon is a decision, not a loss."""
        since_ns = now_ns - int(window_s * 1e9)
        cordons = [
            event
            for node in nodes
            for event in self.events(node)
            if event.state is NodeState.CORDONED and event.owner != Owner.OPERATOR and event.at_ns > since_ns
        ]
        return tuple(sorted(cordons, key=lambda event: event.at_ns))

    def is_breaker_open(self, nodes: Iterable[str], gate: GateConfig, *, now_ns: int) -> bool:
        """Whether more nodes were lost lately than is believable: a person must look before another one goes (R9)."""
        recent = self.recent_exclusions(nodes, window_s=gate.exclusion_window_s, now_ns=now_ns)
        return len(recent) > gate.max_exclusions

    def _move(
        self,
        node: str,
        state: NodeState,
        owner: str,
        reason: str,
        evidence: dict[str, Json] | None,
        *,
        only_from: tuple[NodeState, ...],
    ) -> NodeState:
        def is_news(last: NodeEvent | None) -> bool:
            return (NodeState.NEW if last is None else last.state) in only_from

        return self._append(node, state, owner, reason, evidence, is_news=is_news)

    def _append(
        self,
        node: str,
        state: NodeState,
        owner: str,
        reason: str,
        evidence: dict[str, Json] | None,
        *,
        is_news: Callable[[NodeEvent | None], bool],
        is_override: bool = False,
    ) -> NodeState:
        """Write the next event if it is news to the state found, as often as another writer comes first."""
        if not reason.strip():
            raise ConfigError(f"node {node!r}: every move needs a reason; say why, for whoever reads the ledger next")
        while True:
            events = self.events(node)
            found = fold(events)
            if not is_news(events[-1] if events else None):
                return found
            check_transition(node, found, state, owner)
            event = NodeEvent(
                node=node,
                state=state,
                owner=owner,
                reason=reason,
                at_ns=self._clock(),
                evidence=evidence or {},
                is_override=is_override,
            )
            try:
                self._store.put_new(node_event_key(node, len(events)), to_bytes(event))
            except KeyExists:
                continue
            level = logging.WARNING if state in (NodeState.CORDONED, NodeState.RETURNED) else logging.INFO
            logger.log(level, "node_moved node=%s from=%s to=%s owner=%s reason=%s", node, found, state, owner, reason)
            return state


def check_transition(node: str, before: NodeState, after: NodeState, owner: str) -> None:
    """Return quietly when the table allows the move.

    Raises:
        ConfigError: it does not, for anybody or for this owner.
    """
    owners = TRANSITIONS.get((before, after), frozenset())
    if owner not in owners:
        who = ", ".join(sorted(owners)) or "nobody"
        raise ConfigError(f"node {node!r}: {owner} may not move it from {before} to {after}; {who} may")


def is_released_by_a_pass(last: NodeEvent | None) -> bool:
    """Whether a pass may return this node: it is cordoned, and neither a person nor the policy said so.

    Their reasons lie outside what a node can check on itself, so its own checks cannot refute them.
    """
    return last is not None and last.state is NodeState.CORDONED and last.owner in _CHECKERS
