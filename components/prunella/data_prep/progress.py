"""How far the tokenisation is: a bar on a terminal, an event every few seconds elsewhere."""

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
def show_progress(total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Yields the function that takes in how many bytes of text were done since its last call."""
    if sys.stderr.isatty():
        with _bar() as bar:
            task = bar.add_task("tokenising", total=total_bytes)
            yield lambda size_bytes: bar.advance(task, size_bytes)
    else:
        yield _events(total_bytes)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _events(total_bytes: int) -> Callable[[int], None]:
    done_bytes, last_s = 0, time.monotonic()

    def advance(size_bytes: int) -> None:
        nonlocal done_bytes, last_s
        done_bytes += size_bytes
        if time.monotonic() - last_s >= _EVENT_INTERVAL_S:
            last_s = time.monotonic()
            logger.info("tokenisation_progressed done_bytes=%s total_bytes=%s", done_bytes, total_bytes)

    return advance
