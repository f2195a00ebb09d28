"""Whether a rank hangs, judged from heartbeats alone. Pure: the clock is an argument.

Ranks move in lockstep, so one that stands still stops them all; the one with the fewest beats is where it began. Where several
have the fewest, any of them may wait for another, so all must have been silent; one that said that it waits is not where it
began. The time-out is learned from the steps seen so far. A rank that waits for the object store is given as long as the store
may be silent; while a save moves, the ranks that wait for it say so.
"""

import statistics
from collections import deque
from dataclasses import dataclass

from prunella.config import Config
from prunella.storage import longest_silence_s
from prunella.training_segment.heartbeat import Heartbeat, Phase

#: Phases in which a rank may wait for the object store.
_STORAGE_PHASES = (Phase.LOAD, Phase.DATA, Phase.SAVE, Phase.AGREE, Phase.END)
#: Finished steps the median is taken over. Source: own choice 2026-11; long enough to ignore one slow save.
_HISTORY = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Hang:
    """A rank made no progress for longer than it may."""

    culprit: Heartbeat
    silent_s: float
    limit_s: float


class HangWatch:
    """Remembers how long steps take, and says when a rank takes too long."""

    def __init__(self, config: Config, *, world_size: int, launched_ns: int) -> None:
        self._training = config.training
        self._patience_s = longest_silence_s(config.storage)
        self._world_size = world_size
        self._launched_ns = launched_ns
        self._durations_ns: deque[int] = deque(maxlen=_HISTORY)
        self._seen_step = 0
        self._spoken: set[int] = set()

    def observe(self, beats: dict[int, Heartbeat], *, now_ns: int) -> Hang | None:
        """Learn from the ranks' last words; the hang they show, if they show one.

        A rank that has not spoken yet cannot be blamed by name; the launcher sees its process die or its start time out. Until
        it has, those that spoke wait for it, and none of them hangs.

        Args:
            beats: of the ranks that have not ended.
        """
        self._spoken |= beats.keys()
        if not beats:
            return None
        fewest = min(beat.beats for beat in beats.values())
        hindmost = [beat for beat in beats.values() if beat.beats == fewest]
        culprit = min(hindmost, key=lambda beat: (beat.phase is Phase.AGREE, beat.at_ns))
        self._learn(culprit)
        if not self._durations_ns and len(self._spoken) < self._world_size:
            return None
        limit_s = self._limit_s(culprit)
        silent_s = (now_ns - self._silent_since(hindmost)) / 1e9
        return Hang(culprit=culprit, silent_s=silent_s, limit_s=limit_s) if silent_s > limit_s else None

    def is_start_overdue(self, beats: dict[int, Heartbeat], *, now_ns: int) -> bool:
        """Whether ranks have not even spoken within the start-up time-out.

        Args:
            beats: of all ranks, those that ended too.
        """
        self._spoken |= beats.keys()
        return len(self._spoken) < self._world_size and now_ns - self._launched_ns > self._training.startup_timeout_s * 1e9

    def _learn(self, beat: Heartbeat) -> None:
        if beat.last_step_ns and beat.step != self._seen_step:
            self._seen_step = beat.step
            self._durations_ns.append(beat.last_step_ns)

    def _silent_since(self, hindmost: list[Heartbeat]) -> int:
        return max(beat.at_ns for beat in hindmost) if self._durations_ns else self._launched_ns

    def _limit_s(self, culprit: Heartbeat) -> float:
        if not self._durations_ns:
            return self._training.startup_timeout_s
        step_s = statistics.median_low(self._durations_ns) / 1e9
        limit_s = max(self._training.hang_floor_s, self._training.hang_factor * step_s)
        return limit_s + (self._patience_s if culprit.phase in _STORAGE_PHASES else 0.0)
