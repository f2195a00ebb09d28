"""How long this process has waited in collectives: one clock a process, read once a step by the training loop.

It counts wall time of the calling thread inside collectives that this package starts (expert exchange, FSDP's all-gather
and reduce-scatter, the norm's all-reduce), so waiting for a slow peer counts too. On CPU that is the whole wait. On an
accelerator collectives run asynchronously on their own streams; the host returns at once and the clock is a lower bound.
It never influences what is computed.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class CommunicationClock:
    """Adds up nanoseconds. Safe from autograd's threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waited_ns = 0

    def add(self, waited_ns: int) -> None:
        """Count `waited_ns` more."""
        with self._lock:
            self._waited_ns += waited_ns

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time spent in the block, also when it raises."""
        start_ns = time.perf_counter_ns()
        try:
            yield
        finally:
            self.add(time.perf_counter_ns() - start_ns)

    def take(self) -> int:
        """Nanoseconds since the last take; starts again from zero."""
        with self._lock:
            waited_ns, self._waited_ns = self._waited_ns, 0
        return waited_ns


#: The clock of this process.
clock = CommunicationClock()
