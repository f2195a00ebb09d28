"""The one way to run a stage: started once, found again, waited for, stopped. As what it runs is a setting.

A launch is named by its handle file. Whoever comes second re-attaches to what is named there and never starts another; a
launch that ended without a record is over, and says so. PRUNELLA_LAUNCH says as what stages run: `local`, processes of
this machine; `container`, containers of an engine that speaks Docker's API; or `kubernetes`, pods of a cluster. Pods are
started by Airflow's own operator (`orchestration/cluster_stages.py`); what is no stage is then a process beside Airflow.
"""

import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from prunella.errors import ConfigError
from prunella.launch import local
from prunella.launch.handle import Handle, Process, read
from prunella.records import Stage

logger = logging.getLogger(__name__)

VARIABLE = "PRUNELLA_LAUNCH"
KUBERNETES = "kubernetes"
LAUNCHERS = ("local", "container", KUBERNETES)
_POLL_S = 0.05
#: A started process registers within this long or has failed to start. Source: own choice 2026-11, ten cold imports.
_REGISTER_TIMEOUT_S = 60.0
#: What was killed is over within this long, unless it hangs in a device. Source: own choice 2026-11.
_KILLED_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """One stage to run: for which request, registered and logged where.

    Args:
        node: who it runs as.
        reads: files and folders outside root and scratch that it must be able to read.
    """

    stage: Stage
    root: str
    request_key: str
    handle: Path
    log: Path
    node: str | None = None
    reads: tuple[Path, ...] = ()

    @property
    def command(self) -> list[str]:
        """Arguments of `python -m prunella`."""
        known = ["--root", self.root, "--request", self.request_key, "--handle", str(self.handle)]
        return ["stage", self.stage.value, *known]


def launcher() -> str:
    """As what stages run here.

    Raises:
        ConfigError: PRUNELLA_LAUNCH names nothing we have.
    """
    chosen = os.environ.get(VARIABLE) or LAUNCHERS[0]
    if chosen not in LAUNCHERS:
        raise ConfigError(f"{VARIABLE}: expected one of {', '.join(LAUNCHERS)}, found {chosen!r}")
    return chosen


def start_or_attach(launch: Launch) -> Handle | None:
    """The stage of this launch, started now if nobody has.

    None when it did not register: it ended before it could, or was killed after a minute. Nothing of it is left then.
    """
    found = read(launch.handle)
    if found is not None:
        logger.info("stage_reattached stage=%s handle=%s", launch.stage, found)
        return found
    started = _start(launch)
    deadline = time.monotonic() + _REGISTER_TIMEOUT_S
    while (found := read(launch.handle)) is None and started.is_alive and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return _given_up(started, launch) if found is None else found


def _given_up(started: Handle, launch: Launch) -> Handle | None:
    """End what was started and has not registered: one that did so later would run with nobody to watch it. Whoever has
    registered until it was over counts, alive or not."""
    if started.is_alive:
        logger.warning("stage_killed reason=did_not_register handle=%s after_s=%s", started, _REGISTER_TIMEOUT_S)
    started.send(signal.SIGKILL)
    deadline = time.monotonic() + _KILLED_TIMEOUT_S
    while started.is_alive and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    found = read(launch.handle)
    if found is None:
        started.keep_output(launch.log)
    started.bury()
    return found


def was_started_here(launch: Launch) -> bool:
    """Whether a launch that somebody began can be found from here, given the time that a process takes to register."""
    deadline = time.monotonic() + _REGISTER_TIMEOUT_S
    while read(launch.handle) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _start(launch: Launch) -> Handle:
    """Start it; returns what was started, which has not registered yet."""
    if launcher() == "container":
        from prunella.launch import container

        return container.start(launch)
    process = local.start(launch.command, log=launch.log, node=launch.node)
    return Process(pid=process.pid, started_s=psutil.Process(process.pid).create_time())


class Program(Protocol):
    """A command of ours that was started apart: what a `subprocess.Popen` can, as far as anybody needs it."""

    def wait(self, timeout: float) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired."""

    def kill(self) -> None:
        """SIGKILL."""


def start_command(arguments: list[str], *, log: Path, writes: list[Path]) -> Program:
    """Start `python -m prunella ARGUMENTS`, no stage, where stages run: for what Airflow's side lacks the libraries of.

    Args:
        writes: folders outside root and scratch that it writes to.
    """
    if launcher() == "container":
        from prunella.launch import container

        return container.start_command(arguments, log=log, writes=writes)
    return local.start(arguments, log=log)


def wait(handle: Handle, *, log: Path, on_poll: Callable[[], None] = lambda: None, on_line: Callable[[str], None]) -> None:
    """Wait for the end of a stage, passing on what it logs. An interrupt here is passed on as SIGTERM first."""
    offset = 0
    try:
        while handle.is_alive:
            offset = _pass_on(log, offset, on_line)
            on_poll()
            time.sleep(handle.poll_s)
    except KeyboardInterrupt:
        stop(handle)
        raise
    _pass_on(log, offset, on_line)
    handle.bury()


def ask_to_stop(handle: Handle) -> None:
    """SIGTERM: the stage finishes its step, saves and reports. Does not wait."""
    logger.warning("stage_asked_to_stop handle=%s", handle)
    handle.send(signal.SIGTERM)


def stop(handle: Handle, *, grace_s: float = 30.0) -> None:
    """SIGTERM, so that the stage finishes its step and saves; SIGKILL after `grace_s`."""
    logger.warning("stage_stopping handle=%s grace_s=%s", handle, grace_s)
    deadline = time.monotonic() + grace_s
    handle.send(signal.SIGTERM)
    while handle.is_alive and time.monotonic() < deadline:
        time.sleep(handle.poll_s)
    handle.send(signal.SIGKILL)
    handle.bury()


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
