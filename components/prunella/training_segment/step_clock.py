"""Where the time of a step went: data, communication, checkpoint, and compute, which is the rest. The parts add up exactly.

One step begins where the one before ended, so nothing falls between two records. Time is read from a monotonic clock that
was set to the wall clock once, so a correction of the wall clock during an attempt never makes a part negative.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

_WALL_NS = time.time_ns() - time.monotonic_ns()


def now_ns() -> int:
    """Wall-clock nanoseconds that never run backwards within this process."""
    return _WALL_NS + time.monotonic_ns()


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """One step's time, in nanoseconds; the four parts add up to `end_ns - start_ns`."""

    start_ns: int
    end_ns: int
    data_ns: int
    compute_ns: int
    communication_ns: int
    checkpoint_ns: int


class StepClock:
    """Measures consecutive steps."""

    def __init__(self, start_ns: int) -> None:
        self._start_ns = start_ns
        self._parts = {"data": 0, "communication": 0, "checkpoint": 0}

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Book the time of the block under `data` or `checkpoint`."""
        begin_ns = time.monotonic_ns()
        try:
            yield
        finally:
            self._parts[part] += time.monotonic_ns() - begin_ns

    def add_communication(self, elapsed_ns: int) -> None:
        """Book communication that somebody else measured, inside what would otherwise be compute."""
        self._parts["communication"] += elapsed_ns

    def finish(self, end_ns: int) -> StepTime:
        """Close the step at `end_ns`; the next one begins there."""
        named = self._clipped(end_ns - self._start_ns)
        time_ = StepTime(
            start_ns=self._start_ns,
            end_ns=end_ns,
            data_ns=named["data"],
            compute_ns=end_ns - self._start_ns - sum(named.values()),
            communication_ns=named["communication"],
            checkpoint_ns=named["checkpoint"],
        )
        self._start_ns = end_ns
        self._parts = dict.fromkeys(self._parts, 0)
        return time_

    def _clipped(self, total_ns: int) -> dict[str, int]:
        """The parts, cut so that their sum never exceeds the step: compute is never negative."""
        left_ns, clipped = total_ns, {}
        for part, elapsed_ns in self._parts.items():
            clipped[part] = min(elapsed_ns, left_ns)
            left_ns -= clipped[part]
        return clipped
