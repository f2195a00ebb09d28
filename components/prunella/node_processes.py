"""Processes on nodes: the one door by which a stage that spans nodes starts, sees and ends them.

Here a node is a process group of this machine, with its own identity and log; `node_pods` has nodes that are pods of their
own. A process started here dies with whoever started it (the kernel sees to that, so a SIGKILL of the parent leaves no orphans
that train on), and is told which node it is by PRUNELLA_NODE.
"""

import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from prunella.records import NodeRef

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_PR_SET_PDEATHSIG = 1
#: Loaded before any fork: a child of a process with threads must not call the dynamic loader.
_LIBC = ctypes.CDLL(None, use_errno=True)
#: The kernel takes back a killed process within this long, unless it hangs in a device. Source: own choice 2026-11.
_GONE_S = 10.0


class NodeProcess(Protocol):
    """A process that was started on a node."""

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""

    def kill_group(self) -> None:
        """SIGKILL it and its process group. Works on stopped processes too."""

    def wait(self) -> int:
        """Its exit code, once it has ended."""


class NodeLauncher(Protocol):
    """Where the nodes of a stage are."""

    @property
    def is_one_machine(self) -> bool:
        """Whether all nodes are this machine, so that they share its address and its accelerators."""

    @property
    def is_leaving(self) -> bool:
        """Whether a node that is another machine was told to go, and all should save while they can."""

    @property
    def own_address(self) -> str:
        """Of this machine, as the nodes reach it."""

    def is_here(self, node: NodeRef) -> bool:
        """Whether a node's processes are processes of this machine."""

    def start(self, node: NodeRef, command: list[str], *, log: Path, environment: dict[str, str] | None = None) -> NodeProcess:
        """Start `command` as `node`, in a process group of its own, appending its output to `log`."""

    def meeting_point(self, node: NodeRef) -> tuple[str, int]:
        """Address of a node, as the others reach it, and a TCP port there that nobody listens on now."""

    def state(self, node: NodeRef, pid: int, start: int) -> str | None:
        """What `process_state` says on that node."""


class LocalProcess(subprocess.Popen[bytes]):
    """A process of this machine, leader of its group."""

    def kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class LocalLauncher:
    """Every node is this machine."""

    is_one_machine = True
    is_leaving = False
    own_address = LOOPBACK

    def is_here(self, node: NodeRef) -> bool:
        return True

    def start(self, node: NodeRef, command: list[str], *, log: Path, environment: dict[str, str] | None = None) -> LocalProcess:
        return start_on_node(node, command, log=log, environment=environment)

    def meeting_point(self, node: NodeRef) -> tuple[str, int]:
        return LOOPBACK, free_port()

    def state(self, node: NodeRef, pid: int, start: int) -> str | None:
        return process_state(pid, start)


def start_on_node(node: NodeRef, command: list[str], *, log: Path, environment: dict[str, str] | None = None) -> LocalProcess:
    """Start `command` on this machine as `node`, in a process group of its own, appending its output to `log`."""
    variables = {**os.environ, "PRUNELLA_NODE": node.name, **(environment or {})}
    with log.open("ab") as output:
        return LocalProcess(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def die_with_parent() -> None:
    """Ask the kernel to SIGKILL this process when its parent thread ends. Linux only, like the rest of Prunella."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def kill_groups(processes: Sequence[NodeProcess]) -> None:
    """SIGKILL every process group and reap its leader."""
    for process in processes:
        process.kill_group()
    for process in processes:
        process.wait()


# ------------------------------------------------------------------------------------------------ any process of this machine


class Identity(NamedTuple):
    """A process of this machine. `start` (clock ticks since boot) tells it from a later one with its pid."""

    pid: int
    start: int


def process_start(pid: int) -> int | None:
    """Start of a process in clock ticks since boot; None when there is none (Linux, proc(5) stat field 22)."""
    stat = _stat(pid)
    return int(stat[19]) if stat else None


def process_state(pid: int, start: int) -> str | None:
    """One letter of proc(5) ('R', 'S', 'T' stopped, ...); None when that process has ended, zombies included."""
    stat = _stat(pid)
    if stat is None or int(stat[19]) != start or stat[0] in ("Z", "X"):
        return None
    return stat[0]


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the third on; the second, in brackets, may hold spaces."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def family(pid: int) -> list[Identity]:
    """A process and all that descend from it, as far as their parents live."""
    stats = {int(path.name): stat for path in Path("/proc").glob("[0-9]*") if (stat := _stat(int(path.name))) is not None}
    found = [pid] if pid in stats else []
    for parent in found:  # grows
        found.extend(child for child, stat in stats.items() if int(stat[1]) == parent)
    return [Identity(one, int(stats[one][19])) for one in found]


def end_processes(processes: Sequence[Identity]) -> None:
    """SIGKILL every one that still lives, and wait until it is gone: those that put themselves into sessions of their own are
    not reached by killing a group."""
    deadline_s = time.monotonic() + _GONE_S
    while alive := [process for process in processes if process_state(*process) is not None]:
        for process in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        if time.monotonic() > deadline_s:
            logger.error("processes_not_gone pids=%s", [process.pid for process in alive])
            return
        time.sleep(0.01)


def free_port(wanted: int = 0) -> int:
    """A TCP port of this machine that nobody listens on now: the wanted one (0: none is) where it is free, else any."""
    if wanted and _is_free(wanted):
        return wanted
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    """Whether a server may listen there now; one may while old connections to the port are still being forgotten."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except (OSError, OverflowError):
            return False
    return True


# ------------------------------------------------------------------------------------------------ accelerators


def device_environment(nodes: Sequence[NodeRef], node: NodeRef, *, is_one_machine: bool) -> dict[str, str]:
    """What `own_device` reads: nodes of one machine share its accelerators, in their order; others have their own."""
    before = nodes[: nodes.index(node)] if is_one_machine else ()
    there = nodes if is_one_machine else (node,)
    return {
        "PRUNELLA_FIRST_DEVICE": str(sum(one.devices for one in before)),
        "PRUNELLA_DEVICES": str(sum(one.devices for one in there)),
    }


def own_device() -> tuple[int, int]:
    """Index of this rank's accelerator on its machine, and how many there must be for each rank there to have one."""
    index = int(os.environ["PRUNELLA_FIRST_DEVICE"]) + int(os.environ["LOCAL_RANK"])
    return index, int(os.environ["PRUNELLA_DEVICES"])
