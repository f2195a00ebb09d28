"""How a launched stage is named across deaths, in a file created once: as a process of this machine, or as a container.

A pid alone may be reused; with the start time it names one process for as long as the machine is up. Inside a container
a pid says nothing to the outside, so there the process names the container it runs in, which it is told by
PRUNELLA_CONTAINER.
"""

import contextlib
import json
import os
import signal
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil

from prunella.scratch import write_atomically

#: Tells a process which container it runs in. Set by `launch/container.py`.
CONTAINER_VARIABLE = "PRUNELLA_CONTAINER"


class Handle(ABC):
    """A stage that was started, alive or not."""

    #: Seconds between two looks at it: what a look costs decides.
    poll_s: ClassVar[float]

    @property
    @abstractmethod
    def is_alive(self) -> bool:
        """Whether this very start still runs."""

    @abstractmethod
    def send(self, number: signal.Signals) -> None:
        """Send a signal. Nothing happens to anybody when the stage is over."""

    @abstractmethod
    def words(self) -> dict[str, Any]:
        """Its JSON form, as the handle file holds it."""

    def keep_output(self, log: Path) -> None:
        """Append to a log file what it printed and nobody kept. A process prints into its log."""
        return

    def bury(self) -> None:
        """Let go of what is left of a stage that is over. May be called again and again."""
        return


@dataclass(frozen=True, kw_only=True, slots=True)
class Process(Handle):
    """A process of this machine. `started_s` is seconds since the epoch, as the kernel counts them."""

    poll_s: ClassVar[float] = 0.05

    pid: int
    started_s: float

    @property
    def is_alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.started_s) < 0.5
            return bool(is_same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def send(self, number: signal.Signals) -> None:
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def words(self) -> dict[str, Any]:
        return {"pid": self.pid, "started_s": self.started_s}

    def bury(self) -> None:
        """Collect it if it is our child, so that it does not stay a zombie."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)


def register(path: Path) -> bool:
    """Claim `path` for this process; False when another process claimed it before."""
    prepared = path.with_name(f"{path.name}.{os.getpid()}")
    write_atomically(prepared, json.dumps(_own_words()))
    try:
        os.link(prepared, path)
    except FileExistsError:
        return False
    finally:
        prepared.unlink()
    return True


def _own_words() -> dict[str, Any]:
    container = os.environ.get(CONTAINER_VARIABLE)
    if container:
        return {"container": container}
    return Process(pid=os.getpid(), started_s=psutil.Process().create_time()).words()


def read(path: Path) -> Handle | None:
    """Whoever claimed `path`, alive or not; None when nobody has."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    if "container" in found:
        from prunella.launch.container import Container  # brings the engine's client, which few installations need

        return Container(name=str(found["container"]))
    return Process(pid=int(found["pid"]), started_s=float(found["started_s"]))
