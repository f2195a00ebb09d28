"""Who failed first, and of what. Pure: from what was seen of every rank before anything was killed.

In this order: a hang the launcher saw; a rank that died without a word; a rank's own account of its failure; ranks that lost
a peer although none died; ranks that never spoke. A rank that failed because a peer was gone is never the culprit, nor is one
that never spoke because the agent of another node was gone: agents start no rank before all of them have met.
"""

import signal
from dataclasses import dataclass

from prunella.errors import Cause
from prunella.records import Failure, Json, RankExit
from prunella.training_segment.exits import ExitNote
from prunella.training_segment.hang import Hang
from prunella.training_segment.heartbeat import Heartbeat


@dataclass(frozen=True, kw_only=True, slots=True)
class RankSeen:
    """One rank as the launcher saw it at the first sign of trouble.

    `exit_code` comes from the node's agent and is negative for a signal; None where the agent had not said. `state` is the
    letter of proc(5) of a live process. `agent_gone_ns` is when the node's agent was first found gone, None while it runs.
    """

    rank: int
    node: str
    heartbeat: Heartbeat | None
    note: ExitNote | None
    is_alive: bool
    exit_code: int | None = None
    state: str | None = None
    agent_gone_ns: int | None = None

    @property
    def is_crashed(self) -> bool:
        """Whether it ran, is gone, and left no word."""
        return self.heartbeat is not None and not self.is_alive and self.note is None

    @property
    def is_lost_at_start(self) -> bool:
        """Whether it never said a word, and never will: its node's agent is gone."""
        return self.heartbeat is None and self.agent_gone_ns is not None

    @property
    def is_failed(self) -> bool:
        """Whether it needs everybody to stop."""
        return self.is_crashed or self.is_lost_at_start or (self.note is not None and self.note.failure is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Blame:
    """The failure of an attempt, and the last moment all was well."""

    failure: Failure
    fault_ns: int


def blame(seen: tuple[RankSeen, ...], *, hang: Hang | None, launched_ns: int, tails: dict[str, str]) -> Blame:
    """The one failure that explains the others.

    Args:
        tails: end of each node's log by its name, evidence where ranks could not speak for themselves.
    """
    if hang is not None:
        return _hung(hang, seen)
    crashed = [rank for rank in seen if rank.is_crashed]
    if crashed:
        return _crashed(min(crashed, key=_last_word_ns), tails)
    own = [rank for rank in seen if rank.note and rank.note.failure and not rank.note.is_peer_loss]
    if own:
        return _own_account(min(own, key=_noted_ns), seen)
    lost = [rank for rank in seen if rank.note and rank.note.failure]
    if lost:
        return _lost_peers(min(lost, key=_noted_ns))
    return _never_started(seen, launched_ns, tails)


def rank_exits(seen: tuple[RankSeen, ...], *, launched_ns: int) -> tuple[RankExit, ...]:
    """The ends of all ranks, for the record. A rank that was alive when the others were stopped has no exit of its own."""
    return tuple(_rank_exit(rank, launched_ns) for rank in seen)


def _rank_exit(rank: RankSeen, launched_ns: int) -> RankExit:
    beat, note = rank.heartbeat, rank.note
    code = note.exit_code if note else rank.exit_code
    return RankExit(
        rank=rank.rank,
        node=rank.node,
        step=beat.step if beat else 0,
        phase=beat.phase.value if beat else "launch",
        heartbeat_ns=beat.at_ns if beat else launched_ns,
        is_recorded=note is not None,
        exit_code=None if code is None or code < 0 else code,
        signal=-code if code is not None and code < 0 else None,
        failure=note.failure if note else None,
    )


def _last_word_ns(rank: RankSeen) -> int:
    return rank.heartbeat.at_ns if rank.heartbeat else 0


def _noted_ns(rank: RankSeen) -> int:
    return rank.note.at_ns if rank.note else 0


def _hung(hang: Hang, seen: tuple[RankSeen, ...]) -> Blame:
    beat = hang.culprit
    state = next((rank.state for rank in seen if rank.rank == beat.rank), None)
    evidence: dict[str, Json] = {
        "phase": beat.phase.value,
        "silent_s": round(hang.silent_s, 3),
        "limit_s": round(hang.limit_s, 3),
    }
    if state is not None:
        evidence["process_state"] = state
    message = (
        f"rank {beat.rank} on {beat.node} made no progress for {hang.silent_s:.1f} s (limit {hang.limit_s:.1f} s) in phase "
        f"{beat.phase} of step {beat.step}; its peers were at least as far and waited for it"
    )
    failure = Failure(cause=Cause.HANG, message=message, node=beat.node, rank=beat.rank, step=beat.step, evidence=evidence)
    return Blame(failure=failure, fault_ns=beat.at_ns)


def _crashed(rank: RankSeen, tails: dict[str, str]) -> Blame:
    assert rank.heartbeat is not None
    beat, code = rank.heartbeat, rank.exit_code
    evidence: dict[str, Json] = {"phase": beat.phase.value, "pid": beat.pid}
    how = "its process ended without an exit record"
    if code is not None and code < 0:
        evidence["signal"] = -code
        how = f"it was killed by signal {-code} ({signal.Signals(-code).name})"
    else:
        evidence["log_tail"] = tails.get(rank.node, "")
    message = f"rank {rank.rank} on {rank.node} is gone: {how} in phase {beat.phase} of step {beat.step}"
    failure = Failure(
        cause=Cause.PROCESS_CRASH, message=message, node=rank.node, rank=rank.rank, step=beat.step, evidence=evidence
    )
    return Blame(failure=failure, fault_ns=beat.at_ns)


def _own_account(rank: RankSeen, seen: tuple[RankSeen, ...]) -> Blame:
    assert rank.note is not None
    failure = rank.note.failure
    assert failure is not None
    culprit = next((other for other in seen if other.rank == failure.rank), rank)
    if failure.rank is not None and failure.node is None:
        failure = Failure(
            cause=failure.cause,
            message=failure.message,
            node=culprit.node,
            rank=failure.rank,
            step=failure.step,
            evidence=failure.evidence,
        )
    return Blame(failure=failure, fault_ns=_last_word_ns(culprit) or rank.note.at_ns)


def _lost_peers(rank: RankSeen) -> Blame:
    assert rank.note is not None
    failure = rank.note.failure
    assert failure is not None
    message = f"ranks lost their connections although no rank died or failed; first was rank {rank.rank}: {failure.message}"
    lost = Failure(cause=Cause.UNKNOWN, message=message, step=failure.step, evidence=failure.evidence)
    return Blame(failure=lost, fault_ns=_last_word_ns(rank) or rank.note.at_ns)


def _never_started(seen: tuple[RankSeen, ...], launched_ns: int, tails: dict[str, str]) -> Blame:
    """The first node whose agent is gone; else the one node that is silent; of several, none."""
    silent = [rank for rank in seen if rank.heartbeat is None]
    lost = min((rank for rank in silent if rank.is_lost_at_start), key=_agent_gone_ns, default=None)
    if lost is not None:
        return Blame(failure=_silent(lost, "is gone: its agent ended before it said a word", tails), fault_ns=launched_ns)
    nodes = list(dict.fromkeys(rank.node for rank in silent))
    if len(nodes) == 1:
        return Blame(failure=_silent(silent[0], "never said a word, although its agent runs", tails), fault_ns=launched_ns)
    message = (
        f"no rank on {', '.join(nodes)} ever said a word, although their agents run: nothing tells which node the others wait "
        "for; see log_tail for what they said"
    )
    said = "\n".join(f"{node}: {tails[node]}" for node in nodes if tails.get(node))
    failure = Failure(cause=Cause.PROCESS_CRASH, message=message, evidence={"log_tail": said})
    return Blame(failure=failure, fault_ns=launched_ns)


def _agent_gone_ns(rank: RankSeen) -> int:
    return rank.agent_gone_ns or 0


def _silent(rank: RankSeen, how: str, tails: dict[str, str]) -> Failure:
    return Failure(
        cause=Cause.PROCESS_CRASH,
        message=f"rank {rank.rank} on {rank.node} {how}; see log_tail for what the node said",
        node=rank.node,
        rank=rank.rank,
        evidence={"log_tail": tails.get(rank.node, "")},
    )
