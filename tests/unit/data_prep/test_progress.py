"""How far the tokenisation is, for a person and for a log."""

import logging
import os
import pty
import subprocess
import sys
from types import SimpleNamespace

from prunella.data_prep import progress

_PROGRAM = """
from prunella.data_prep.progress import show_progress
with show_progress(3000000) as advance:
    for _ in range(3):
        advance(1000000)
"""


def test_a_terminal_shows_a_bar_that_ends_full():
    ours, theirs = pty.openpty()

    with os.fdopen(theirs, "wb") as stderr:
        finished = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            stderr=stderr,
            stdout=subprocess.PIPE,
            env={**os.environ, "COLUMNS": "120", "TERM": "xterm"},
            check=True,
            timeout=60,
        )
        shown = os.read(ours, 100_000).decode()
    os.close(ours)

    assert "tokenising" in shown
    assert "3.0/3.0 MB" in shown
    assert finished.stdout == b""


def test_elsewhere_an_event_comes_every_few_seconds(monkeypatch, caplog):
    seconds = iter([0.0, 1.0, 6.0, 6.0, 7.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(seconds)))  # its clock, and nobody else's
    monkeypatch.setattr(logging.getLogger("prunella"), "propagate", True)

    with caplog.at_level(logging.INFO, logger="prunella"), progress.show_progress(300) as advance:
        for _ in range(3):
            advance(100)

    assert caplog.messages == ["tokenisation_progressed done_bytes=200 total_bytes=300"]


def test_an_output_that_is_no_terminal_gets_no_bar():
    finished = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, check=True, timeout=60)

    assert (finished.stdout, finished.stderr) == (b"", b"")
