"""Logging for processes of Prunella: past-tense events with fields, and who speaks bound to every line.

`configure` is called once by a process's entry point, never on import. Lines are UTC, one event each:
`2026-11-21T02:20:00.000Z WARNING prunella.storage storage_call_retried key=... | experiment=x segment=0 rank=1`.
Lines of stages, which are formatted already, are relayed by the logger `prunella.stage` as they are. No line holds a secret
of the environment, and neither do warnings of libraries nor the traceback of an error that nobody caught.
"""

import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import TextIO

from prunella.redaction import redacted

PRINT_INTO_VARIABLE = "PRUNELLA_PRINT_INTO"
_FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s%(bound)s"


def configure(*, stream: TextIO | None = None, level: int = logging.INFO, bound: Mapping[str, object] | None = None) -> None:
    """Send `prunella.*` events to `stream` (standard error by default), each with the fields in `bound`."""
    handler = logging.StreamHandler(stream or sys.stderr)
    formatter = _Discreet(_FORMAT, datefmt="%Y-%m-%dT%H:%M:%S", defaults={"bound": _suffix(bound or {})})
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("prunella")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
    relayed = logging.StreamHandler(stream or sys.stderr)
    relayed.setFormatter(_Discreet())
    stage = logging.getLogger("prunella.stage")
    stage.handlers[:] = [relayed]
    stage.propagate = False
    if logging.lastResort is not None:  # what writes the warnings of libraries
        logging.lastResort.setFormatter(_Discreet())
    sys.excepthook = _show_uncaught


class _Discreet(logging.Formatter):
    """Masks secrets in the whole line, the traceback with it."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def _show_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What Python prints of an error that nobody caught, without secrets."""
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))


def print_where_told() -> None:
    """Append what this process prints from now on to the file that PRUNELLA_PRINT_INTO names, if it names one.

    Whoever starts a container cannot hand it an open file, as one does with a process.
    """
    log = os.environ.pop(PRINT_INTO_VARIABLE, None)
    if log is not None:
        opened = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(opened, 1)
        os.dup2(opened, 2)
        os.close(opened)


def bound_by(key: str) -> dict[str, object]:
    """The fields that an object key binds: `experiments/x/segments/0003/attempts/01/...` is of experiment x, segment 3."""
    words = key.split("/")
    pairs = dict(zip(words[::2], words[1::2], strict=False))
    fields = {"experiment": pairs.get("experiments"), "segment": pairs.get("segments"), "attempt": pairs.get("attempts")}
    return {name: value for name, value in fields.items() if value is not None}


def _suffix(bound: Mapping[str, object]) -> str:
    fields = " ".join(f"{key}={value}" for key, value in bound.items() if value is not None)
    return f" | {fields}" if fields else ""
