"""Stages as processes of this machine, in a session of their own: they survive the Airflow worker that started them.

A launch is named by its handle file. Whoever comes second re-attaches to the process in it and never starts another; a
launch whose process ended without a record is over, and says so.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prunella.launch.handle import Handle, read
from prunella.records import Stage

logger = logging.getLogger(__name__)

_POLL_S = 0.05
#: A started process registers within this long or has failed to start. Source: own choice 2026-11, ten cold imports.
_REGISTER_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """One process to run: which stage, for which request, registered and logged where. `node` is who it runs as."""

    stage: Stage
    root: str
    request_key: str
    handle: Path
    log: Path
    node: str | None = None


def interpreter() -> str:
    """The Python that runs stages: PRUNELLA_PYTHON, else this one. Airflow's own environment needs no torch."""
    return os.environ.get("PRUNELLA_PYTHON", sys.executable)


def start_or_attach(launch: Launch) -> Handle | None:
    """The process of this launch, started now if nobody has. None when it ended before it could register."""
    found = read(launch.handle)
    if found is not None:
        logger.info("stage_reattached stage=%s pid=%s", launch.stage, found.pid)
        return found
    process = _start(launch)
    deadline = time.monotonic() + _REGISTER_TIMEOUT_S
    while (found := read(launch.handle)) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            return read(launch.handle)
        time.sleep(_POLL_S)
    return found


def _start(launch: Launch) -> subprocess.Popen[bytes]:
    command = [interpreter(), "-m", "prunella", "stage", launch.stage.value]
    command += ["--root", launch.root, "--request", launch.request_key, "--handle", str(launch.handle)]
    environment = {**os.environ, **({"PRUNELLA_NODE": launch.node} if launch.node else {})}
    with launch.log.open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def wait(handle: Handle, *, log: Path, on_poll: Callable[[], None] = lambda: None, on_line: Callable[[str], None]) -> None:
    """Wait for the end of a process, passing on what it logs. An interrupt here is passed on as SIGTERM first."""
    offset = 0
    try:
        while handle.is_alive:
            offset = _pass_on(log, offset, on_line)
            on_poll()
            time.sleep(_POLL_S)
            _reap(handle)
    except KeyboardInterrupt:
        stop(handle)
        raise
    _pass_on(log, offset, on_line)


def ask_to_stop(handle: Handle) -> None:
    """SIGTERM: the stage finishes its step, saves and reports. Does not wait."""
    logger.warning("stage_asked_to_stop pid=%s", handle.pid)
    _signal(handle, signal.SIGTERM)


def stop(handle: Handle, *, grace_s: float = 30.0) -> None:
    """SIGTERM, so that the stage finishes its step and saves; SIGKILL after `grace_s`."""
    logger.warning("stage_stopping pid=%s grace_s=%s", handle.pid, grace_s)
    deadline = time.monotonic() + grace_s
    _signal(handle, signal.SIGTERM)
    while handle.is_alive and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        _reap(handle)
    _signal(handle, signal.SIGKILL)


def _signal(handle: Handle, number: int) -> None:
    if handle.is_alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(handle.pid, number)


def _reap(handle: Handle) -> None:
    """Collect the process if it is our child, so that it does not stay a zombie."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(handle.pid, os.WNOHANG)


def _pass_on(log: Path, offset: int, on_line: Callable[[str], None]) -> int:
    if not log.exists():
        return offset
    with log.open("rb") as file:
        file.seek(offset)
        data = file.read()
    complete = data.rfind(b"\n") + 1
    for line in data[:complete].decode(errors="replace").splitlines():
        on_line(line)
    return offset + complete
