"""How far a pass over the corpus is, for a person and for a log."""

import logging
import os
import pty
import subprocess
import sys
from types import SimpleNamespace

from prunella.data_prep import progress

_PROGRAM = """
from prunella.data_prep.progress import show_progress
with show_progress("tokenisation", 3000000) as advance:
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

    assert "tokenisation" in shown
    assert "3.0/3.0 MB" in shown
    assert finished.stdout == b""


def test_elsewhere_an_event_comes_every_few_seconds(monkeypatch, caplog):
    seconds = iter([0.0, 1.0, 6.0, 6.0, 7.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(seconds)))  # its clock, and nobody else's
    monkeypatch.setattr(logging.getLogger("prunella"), "propagate", True)

    with caplog.at_level(logging.INFO, logger="prunella"), progress.show_progress("tokenisation", 300) as advance:
        for _ in range(3):
            advance(100)

    assert caplog.messages == ["tokenisation_progressed done_bytes=200 total_bytes=300"]


def test_every_pass_over_the_corpus_says_how_far_it_is(experiment, monkeypatch, caplog):
    monkeypatch.setattr(progress, "_EVENT_INTERVAL_S", 0.0)
    monkeypatch.setattr(logging.getLogger("prunella"), "propagate", True)

    with caplog.at_level(logging.INFO, logger="prunella"):
        experiment.prepare()

    events = [message.split()[0] for message in caplog.messages]
    surveyed, trained = events.index("corpus_surveyed"), events.index("tokenizer_trained")
    assert "survey_progressed" in events[:surveyed]
    assert {"tokenizer_training_started", "vocabulary_progressed"} <= set(events[surveyed:trained])
    assert "tokenisation_progressed" in events[trained:]
    assert "total_bytes=unknown" in caplog.messages[events.index("survey_progressed")]
    assert "vocabulary_progressed done_bytes=5000 total_bytes=5000" in caplog.messages


def test_an_output_that_is_no_terminal_gets_no_bar():
    finished = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, check=True, timeout=60)

    assert (finished.stdout, finished.stderr) == (b"", b"")
