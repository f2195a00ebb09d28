"""Logging for processes of Prunella: past-tense events with fields, and who speaks bound to every line.

`configure` is called once by a process's entry point, never on import. Lines are UTC, one event each:
`2026-11-21T02:20:00.000Z WARNING prunella.storage storage_call_retried key=... | experiment=x segment=0 rank=1`.
"""

import logging
import sys
import time
from typing import TextIO

_FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s%(bound)s"


def configure(*, stream: TextIO | None = None, level: int = logging.INFO, **bound: object) -> None:
    """Send `prunella.*` events to `stream` (standard error by default), each with the fields in `bound`."""
    handler = logging.StreamHandler(stream or sys.stderr)
    formatter = logging.Formatter(_FORMAT, datefmt="%Y-%m-%dT%H:%M:%S", defaults={"bound": _suffix(bound)})
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("prunella")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


def _suffix(bound: dict[str, object]) -> str:
    fields = " ".join(f"{key}={value}" for key, value in bound.items() if value is not None)
    return f" | {fields}" if fields else ""
