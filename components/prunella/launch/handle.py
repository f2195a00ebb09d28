"""How a process of ours is named across deaths: its pid and when it started, in a file created once.

A pid alone may be reused; with the start time it names one process for as long as the machine is up.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from prunella.scratch import write_atomically


@dataclass(frozen=True, kw_only=True, slots=True)
class Handle:
    """One process. `started_s` is seconds since the epoch, as the kernel counts them."""

    pid: int
    started_s: float

    @property
    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.started_s) < 0.5
            return bool(is_same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


def register(path: Path) -> bool:
    """Claim `path` for this process; False when another process claimed it before."""
    text = json.dumps({"pid": os.getpid(), "started_s": psutil.Process().create_time()})
    prepared = path.with_name(f"{path.name}.{os.getpid()}")
    write_atomically(prepared, text)
    try:
        os.link(prepared, path)
    except FileExistsError:
        return False
    finally:
        prepared.unlink()
    return True


def read(path: Path) -> Handle | None:
    """The process that claimed `path`, alive or not; None when none has."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return Handle(pid=int(found["pid"]), started_s=float(found["started_s"]))
