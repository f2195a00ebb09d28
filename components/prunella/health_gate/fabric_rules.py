"""From what the ranks of one round left behind to a health for each node. Pure.

The order matters: somebody who was not there explains why everybody else waited, so the waiting are not blamed, and wrong
data is looked at before time-outs. A node that the round says nothing about is absent from the answer.

    did not arrive, died, or fell silent     unknown: failing to observe is not a failure
    sends or receives most of the wrong data unhealthy, when it stands out; else every node involved is unknown
    did not finish, and nobody explains it   unknown
    finished, and everything was right       healthy, if all did
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from prunella.health_gate.fabric_report import RankReport, StepReport
from prunella.records import CheckResult, Health


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One rank after a round. `arrival_ms` is None when it never arrived; `absence` says why it cannot be judged."""

    rank: int
    node: str
    arrival_ms: float | None
    absence: str = ""
    report: RankReport | None = None

    @property
    def steps(self) -> tuple[StepReport, ...]:
        """The exchanges it completed."""
        return self.report.steps if self.report else ()

    @property
    def is_finished(self) -> bool:
        """Whether it did everything."""
        return self.report is not None and self.report.is_finished


def conclude(members: Sequence[Member]) -> dict[str, Health]:
    """Health of each node the round says something about."""
    absent = {member.node for member in members if member.absence}
    if absent:
        return dict.fromkeys(sorted(absent), Health.UNKNOWN)
    wrong = _accuse(members)
    if wrong:
        return wrong
    unfinished = {member.node for member in members if not member.is_finished}
    if unfinished:
        return dict.fromkeys(sorted(unfinished), Health.UNKNOWN)
    return {member.node: Health.HEALTHY for member in members}


def _accuse(members: Sequence[Member]) -> dict[str, Health]:
    """Nodes at either end of wrong data; a wrong sum counts against the one who holds it when no pair tells more."""
    node_of = {member.rank: member.node for member in members}
    charges: Counter[str] = Counter()
    for member in members:
        for step in member.steps:
            for source in step.wrong_from:
                charges.update({node_of[source], member.node})
    if not charges:
        charges.update(member.node for member in members if any(step.wrong for step in member.steps))
    if not charges:
        return {}
    most = max(charges.values())
    guilty = [node for node, count in charges.items() if count == most]
    if len(guilty) == 1:
        return {guilty[0]: Health.UNHEALTHY}
    return dict.fromkeys(sorted(guilty), Health.UNKNOWN)


def describe(
    members: Sequence[Member], health: dict[str, Health], *, round_index: int, timeout_s: float
) -> tuple[CheckResult, ...]:
    """Every rank's arrival and exchanges as check results; that a peer had to wait is no failure of its own."""
    results: list[CheckResult] = []
    for member in members:
        verdict = health.get(member.node, Health.UNKNOWN)
        results.append(_arrival(member, round_index, timeout_s))
        results += [_exchange(member, step, verdict, round_index) for step in member.steps]
    return tuple(results)


def _arrival(member: Member, round_index: int, timeout_s: float) -> CheckResult:
    value = timeout_s * 1e3 if member.arrival_ms is None else member.arrival_ms
    return CheckResult(
        name="fabric_arrival",
        node=member.node,
        health=Health.UNKNOWN if member.absence else Health.HEALTHY,
        value=value,
        unit="ms",
        reference=f"at most {timeout_s * 1e3:g} ms",
        duration_ms=value,
        detail=f"round {round_index} rank {member.rank} {member.absence}".strip(),
    )


def _exchange(member: Member, step: StepReport, verdict: Health, round_index: int) -> CheckResult:
    sources = f" from ranks {', '.join(map(str, step.wrong_from))}" if step.wrong_from else ""
    backend = member.report.backend if member.report else ""
    return CheckResult(
        name=f"fabric_{step.name}",
        node=member.node,
        health=_exchange_health(step, verdict),
        value=float(step.wrong),
        unit="elements",
        reference="exactly 0 elements",
        duration_ms=step.duration_ms,
        detail=f"round {round_index} rank {member.rank} {backend}{sources}",
    )


def _exchange_health(step: StepReport, verdict: Health) -> Health:
    if not step.wrong:
        return Health.HEALTHY
    return Health.UNHEALTHY if verdict is Health.UNHEALTHY else Health.UNKNOWN
