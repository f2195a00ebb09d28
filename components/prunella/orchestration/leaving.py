"""How `prunella run` is left in the middle of a DAG run: after Ctrl-C or SIGTERM, or when the store has no room.

Airflow catches whatever a task raises, Ctrl-C too, and would go on with the next task; and it takes SIGTERM for itself at
the start of every task that it runs in this process, and then ignores it. So a step that must end the command raises
`Leave`, a SystemExit, which Airflow notes without a traceback; `leave`, the callback that Airflow calls next, raises it
again, past Airflow. Under a scheduler nothing of this happens: there a task ends, and its next try goes on.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from prunella.errors import StorageFull

_interrupted = threading.Event()


class Leave(SystemExit):
    """The command ends now, and says why. Every record written so far is whole."""


def listen() -> None:
    """Take Ctrl-C and SIGTERM as one: an interrupt. Only the main thread can; elsewhere nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell that starts us in the background wants it ignored
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    _interrupted.set()
    raise KeyboardInterrupt


@contextmanager
def may_leave(*, is_unattended: bool) -> Iterator[None]:
    """Around a step: what ends the command becomes `Leave`, also an interrupt that Airflow has swallowed before."""
    if not is_unattended:
        yield
        return
    listen()
    try:
        if _interrupted.is_set():
            raise KeyboardInterrupt
        yield
    except KeyboardInterrupt as error:
        raise Leave("interrupted") from error
    except StorageFull as error:
        raise Leave(str(error)) from error


def leave(context: Any) -> None:
    """Callback of a task that failed or is to be tried again: ends the command where the task meant that."""
    error = context.get("exception")
    if isinstance(error, Leave):
        raise error
    if _interrupted.is_set():
        raise Leave("interrupted")
