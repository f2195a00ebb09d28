"""Waiting until something has become so, with a bound: what a test waits for is made so by other processes or threads."""

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")

#: How long work is waited for that includes a start of stages, on a busy machine [s].
PATIENCE_S = 400.0


class Command(Protocol):
    """A process, of whatever kind, that knows whether it ended."""

    def poll(self) -> int | None: ...


def wait_until(
    is_so: Callable[[], T],
    what: str | Callable[[], object] = "see the call",
    *,
    timeout_s: float = PATIENCE_S,
    every_s: float = 0.05,
    command: Command | None = None,
) -> T:
    """The first answer of `is_so` that is true; fails when none came in time, or when the command that works on it ended.

    `what` is said in that case; a function is asked for it then.
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := is_so()):
        assert command is None or command.poll() is None, f"the command ended first; wanted: {_said(what)}"
        assert time.monotonic() < deadline, f"not so within {timeout_s:g} s: {_said(what)}"
        time.sleep(every_s)
    return answer


def _said(what: str | Callable[[], object]) -> object:
    return what() if callable(what) else what
