"""How far a pass over the corpus is: a bar on a terminal, an event every few seconds elsewhere."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

#: Seconds between events. Source: own choice 2026-11; a person watching a log looks away after about that long.
_EVENT_INTERVAL_S = 5.0


@contextlib.contextmanager
def show_progress(activity: str, total_bytes: int | None = None) -> Iterator[Callable[[int], None]]:
    """Yields the function that takes in how many bytes of text were done since its last call.

    Args:
        activity: what is done, a noun: the name of the bar and of the events.
        total_bytes: None where nobody can know before the end.
    """
    if sys.stderr.isatty():
        with _bar() as bar:
            task = bar.add_task(activity, total=total_bytes)
            yield lambda size_bytes: bar.advance(task, size_bytes)
    else:
        yield _events(activity, total_bytes)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _events(activity: str, total_bytes: int | None) -> Callable[[int], None]:
    done_bytes, last_s = 0, time.monotonic()

    def advance(size_bytes: int) -> None:
        nonlocal done_bytes, last_s
        done_bytes += size_bytes
        if time.monotonic() - last_s >= _EVENT_INTERVAL_S:
            last_s = time.monotonic()
            total = "unknown" if total_bytes is None else total_bytes
            logger.info("%s_progressed done_bytes=%s total_bytes=%s", activity, done_bytes, total)

    return advance
