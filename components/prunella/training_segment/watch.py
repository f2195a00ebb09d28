"""What the launcher watches while ranks train, and how it comes to know that something is wrong.

It trusts exit notes, heartbeats and the kernel's word on processes, in that order. Not being able to look is not failure: a
store that is out of reach, or refuses the look, neither fences nor fails an attempt here. Where that lasts, the saves of ranks
are refused too, and fail by their own rules. It never kills; the stage does, once this has returned.
"""

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from prunella.config import Config
from prunella.errors import ConfigError, StorageError
from prunella.ledger import Ledger
from prunella.node_processes import NodeLauncher, NodeProcess
from prunella.records import NodeRef, StopReason, TrainRequest
from prunella.training_segment.agents import reported_exit_codes
from prunella.training_segment.culprit import RankSeen
from prunella.training_segment.exits import read_note
from prunella.training_segment.hang import Hang, HangWatch
from prunella.training_segment.heartbeat import read_heartbeat
from prunella.training_segment.job import ask_to_stop, rank_nodes

logger = logging.getLogger(__name__)

#: Between two looks. Source: own choice 2026-11: adds 0.05 s to a detection on average; a look at two ranks took 0.26 ms of
#: one core (measured 2026-11).
_POLL_S = 0.1
#: After the first failure, how long the others get to say what they saw. Source: own measurement 2026-11: from a kill to
#: signal and peers known took 0.09 to 0.15 s.
_SETTLE_S = 1.0
#: DESIGN 4.4: a launcher looks for a newer token at least this often.
_MAX_FENCE_POLL_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """Why watching ended. `stopped_by` is FAILURE when something went wrong; then `hang` tells whether it was a hang."""

    seen: tuple[RankSeen, ...]
    stopped_by: StopReason
    detected_ns: int
    hang: Hang | None = None


class StopRequest:
    """That somebody or something wants this attempt to end early, and since when."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self.reason: StopReason | None = None
        self.asked_s = 0.0

    def ask(self, reason: StopReason) -> None:
        """Ask the ranks to finish their step, save and end. The first reason counts, but a signal counts more than the clock:
        whoever sent it waits for the end, and not for long."""
        if self.reason is None or (reason is StopReason.SIGNAL and self.reason is not reason):
            self.reason, self.asked_s = reason, time.monotonic()
            ask_to_stop(self._scratch)
            logger.warning("training_stop_asked reason=%s", reason)

    @contextlib.contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Let SIGTERM ask, inside the block. Only the main thread can; elsewhere nothing is changed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(_number: int, _frame: FrameType | None) -> None:
            self.ask(StopReason.SIGNAL)

        previous = signal.signal(signal.SIGTERM, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)


class Watch:
    """Looks at one attempt until it has ended or must be ended."""

    def __init__(
        self,
        config: Config,
        request: TrainRequest,
        agents: list[NodeProcess],
        scratch: Path,
        *,
        launcher: NodeLauncher,
        launched_ns: int,
        check_token: Callable[[], None],
    ) -> None:
        self._config = config
        self._nodes = request.nodes
        self._ranks = rank_nodes(request.nodes)
        self._agents = agents
        self._launcher = launcher
        self._scratch = scratch
        self._launched_ns = launched_ns
        self._check_token = check_token
        self._hangs = HangWatch(config, world_size=len(self._ranks), launched_ns=launched_ns)
        self._fence_checked_s = 0.0
        self._fence_hidden_by = ""
        self._agents_gone_ns: dict[str, int] = {}
        self._first_step_s = math.inf

    def until_over(self, stop: StopRequest) -> Watched:
        """Watch until every rank ended well, one failed, or patience ended.

        Raises:
            Fenced: a newer attempt holds the token.
        """
        while True:
            seen = self._look()
            if over := self._over(seen, stop):
                return over
            self._ask_fence()
            self._watch_wall_clock(stop)
            if self._launcher.is_leaving:
                stop.ask(StopReason.SIGNAL)
            time.sleep(_POLL_S)

    def _over(self, seen: tuple[RankSeen, ...], stop: StopRequest) -> Watched | None:
        now_ns = time.time_ns()
        if all(rank.note is not None and rank.note.failure is None for rank in seen):
            return Watched(seen=seen, stopped_by=_reason(seen, stop), detected_ns=now_ns)
        if any(rank.is_failed for rank in seen):
            return Watched(seen=self._settle(), stopped_by=StopReason.FAILURE, detected_ns=time.time_ns())
        beats = {rank.rank: rank.heartbeat for rank in seen if rank.heartbeat is not None}
        ended = {rank.rank for rank in seen if rank.note is not None}
        hang = self._hangs.observe({rank: beat for rank, beat in beats.items() if rank not in ended}, now_ns=now_ns)
        if hang is not None or self._hangs.is_start_overdue(beats, now_ns=now_ns):
            return Watched(seen=seen, stopped_by=StopReason.FAILURE, detected_ns=now_ns, hang=hang)
        if self._first_step_s == math.inf and any(beat.last_step_ns for beat in beats.values()):
            self._first_step_s = time.monotonic()
        if stop.reason is not None and time.monotonic() - self._grace_began_s(stop) > self._config.training.grace_s:
            return Watched(seen=seen, stopped_by=stop.reason, detected_ns=now_ns)
        return None

    def _grace_began_s(self, stop: StopRequest) -> float:
        """From when on the ranks have `grace_s` to finish their step, save and end.

        Whoever sent a signal waits from then on. The clock lets them start and make one step, which has a time-out of its own.
        """
        return stop.asked_s if stop.reason is StopReason.SIGNAL else max(stop.asked_s, self._first_step_s)

    def _look(self) -> tuple[RankSeen, ...]:
        self._look_at_agents()
        return tuple(self._look_at(rank, node) for rank, node in enumerate(self._ranks))

    def _look_at_agents(self) -> None:
        """Before the ranks: one that has not spoken once its agent is gone never will."""
        for node, agent in zip(self._nodes, self._agents, strict=True):
            if agent.poll() is not None:
                self._agents_gone_ns.setdefault(node.name, time.time_ns())

    def _look_at(self, rank: int, node: NodeRef) -> RankSeen:
        """The process first, its note after: a rank that is gone has written its note before it went, or never will."""
        beat = read_heartbeat(self._scratch, rank)
        state = self._launcher.state(node, beat.pid, beat.process_start) if beat else None
        note = read_note(self._scratch, rank)
        return RankSeen(
            rank=rank,
            node=node.name,
            heartbeat=beat,
            note=note,
            is_alive=state is not None,
            state=state,
            agent_gone_ns=self._agents_gone_ns.get(node.name),
        )

    def _settle(self) -> tuple[RankSeen, ...]:
        """Look again until every rank is explained, for a moment: the first sign of trouble need not be its cause."""
        deadline_s = time.monotonic() + _SETTLE_S
        while True:
            seen = self._with_exit_codes(self._look())
            is_clear = all(rank.note is not None or rank.exit_code is not None for rank in seen)
            if is_clear or time.monotonic() > deadline_s:
                return seen
            time.sleep(_POLL_S / 2)

    def _with_exit_codes(self, seen: tuple[RankSeen, ...]) -> tuple[RankSeen, ...]:
        codes = reported_exit_codes(self._scratch, self._nodes)
        return tuple(replace(rank, exit_code=codes.get(rank.heartbeat.pid)) if rank.heartbeat else rank for rank in seen)

    def _ask_fence(self) -> None:
        interval_s = min(self._config.training.fence_poll_s, _MAX_FENCE_POLL_S)
        if time.monotonic() - self._fence_checked_s < interval_s:
            return
        self._fence_checked_s = time.monotonic()
        hidden_by = ""
        try:
            self._check_token()
        except (StorageError, ConfigError) as error:  # of credentials that expired a bucket says ConfigError
            hidden_by = str(error)
        if hidden_by and hidden_by != self._fence_hidden_by:
            logger.warning("fence_not_seen error=%s", hidden_by)
        elif self._fence_hidden_by and not hidden_by:
            logger.info("fence_seen_again")
        self._fence_hidden_by = hidden_by

    def _watch_wall_clock(self, stop: StopRequest) -> None:
        limit_s = self._config.training.wall_clock_limit_s
        if limit_s is not None and time.time_ns() - self._launched_ns > limit_s * 1e9:
            stop.ask(StopReason.WALL_CLOCK)


def _reason(seen: tuple[RankSeen, ...], stop: StopRequest) -> StopReason:
    """Ranks that reached their last step ended, whoever asked them to stop meanwhile."""
    was_stopped = any(rank.note is not None and rank.note.is_stopped for rank in seen)
    return (stop.reason or StopReason.SIGNAL) if was_stopped else StopReason.END


def token_check(ledger: Ledger, request: TrainRequest) -> Callable[[], None]:
    """A look at the token, without the patience of ordinary storage calls: watching must not stall."""

    def check() -> None:
        ledger.check_token(segment=request.segment, attempt=request.attempt, run_index=request.run_index)

    return check
