"""Gate the links between nodes: launch the survivors of `gate_node` together and let them exchange data.

Decides which `wanted` nodes are admitted to training. Takes the request's order as the order of preference, and replaces a
node that is unhealthy or unknown by the next one, until a whole team passes or the candidates run out. A member that does not
arrive is unknown and its peers are not blamed. Never moves a node in the node ledger, and never outlives a process it started.
"""

import logging
import tempfile
import time
from pathlib import Path

from prunella.config import Config
from prunella.errors import Cause
from prunella.health_gate.fabric_round import run_round
from prunella.health_gate.fabric_rules import conclude, describe
from prunella.node_pods import Shared, reached
from prunella.node_processes import NodeLauncher
from prunella.records import (
    CheckResult,
    Failure,
    GateFabricRecord,
    GateFabricRequest,
    Health,
    Json,
    NodeRef,
    Part,
    Span,
    Stage,
    Verdict,
)
from prunella.scratch import attempt_scratch

logger = logging.getLogger(__name__)

#: Each round has a folder of its own.
_ROUND = "fabric-"
_SHARED = Shared(from_guests=(f"{_ROUND}*/*",))


def run(config: Config, request: GateFabricRequest) -> GateFabricRecord:
    """Find `request.wanted` nodes whose links are good."""
    scratch = attempt_scratch(request.root, request.experiment, request.segment, request.attempt, opened_ns=request.opened_ns)
    with reached(config, request, scratch, _SHARED) as launcher:
        return gate(config, request, scratch, launcher)


def gate(config: Config, request: GateFabricRequest, scratch: Path, launcher: NodeLauncher) -> GateFabricRecord:
    """The same, on nodes that a launcher reaches."""
    started_ns = time.time_ns()
    health: dict[str, Health] = {}
    checks: tuple[CheckResult, ...] = ()
    team = _team(request, health)
    round_index = 0
    while len(team) == request.wanted:
        folder = Path(tempfile.mkdtemp(prefix=f"{_ROUND}{round_index}-", dir=scratch))
        members = run_round(team, folder=folder, timeout_s=config.gate.fabric_timeout_s, launcher=launcher)
        found = conclude(members)
        health |= found
        checks += describe(members, found, round_index=round_index, timeout_s=config.gate.fabric_timeout_s)
        if all(found.get(node.name) is Health.HEALTHY for node in team):
            break
        logger.warning("fabric_round_failed round=%s health=%s", round_index, {k: str(v) for k, v in found.items()})
        team = _team(request, health)
        round_index += 1
    return _report(request, team, health, checks, started_ns)


def _team(request: GateFabricRequest, health: dict[str, Health]) -> tuple[NodeRef, ...]:
    """The first `wanted` candidates that nothing speaks against."""
    usable = [node for node in request.nodes if health.get(node.name, Health.HEALTHY) is Health.HEALTHY]
    return tuple(usable[: request.wanted])


def _report(
    request: GateFabricRequest,
    team: tuple[NodeRef, ...],
    health: dict[str, Health],
    checks: tuple[CheckResult, ...],
    started_ns: int,
) -> GateFabricRecord:
    is_complete = len(team) == request.wanted
    ended_ns = time.time_ns()
    return GateFabricRecord(
        stage=Stage.GATE_FABRIC,
        verdict=Verdict.ACCEPTED if is_complete else Verdict.REJECTED,
        started_ns=started_ns,
        ended_ns=ended_ns,
        failure=None if is_complete else _too_few(request, team, health),
        spans=(Span(part=Part.GATE, start_ns=started_ns, end_ns=ended_ns),),
        admitted=team if is_complete else (),
        health=health,
        checks=checks,
    )


def _too_few(request: GateFabricRequest, team: tuple[NodeRef, ...], health: dict[str, Health]) -> Failure:
    excluded = {name: value for name, value in health.items() if value is not Health.HEALTHY}
    words = ", ".join(f"{name} {value}" for name, value in excluded.items()) or "none"
    message = (
        f"too few nodes: {request.wanted} needed, {len(team)} usable of {len(request.nodes)} that passed alone "
        f"(excluded here: {words}); `prunella node list` shows why, then repair and `prunella node uncordon NAME`, "
        "or add nodes to the fleet file"
    )
    evidence: dict[str, Json] = {"needed": request.wanted, "have": len(team), **{k: str(v) for k, v in excluded.items()}}
    return Failure(cause=Cause.NODE_UNHEALTHY, message=message, evidence=evidence)
