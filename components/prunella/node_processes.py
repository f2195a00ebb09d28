"""Processes on nodes. On one machine a node is a process group of its own, with its own identity and log.

A process started here dies with whoever started it (the kernel sees to that, so a SIGKILL of the parent leaves no
orphans that train on), and is told which node it is by PRUNELLA_NODE. Stages that span nodes use this door.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
from pathlib import Path

from prunella.records import NodeRef

_PR_SET_PDEATHSIG = 1
#: Loaded before any fork: a child of a process with threads must not call the dynamic loader.
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Ask the kernel to SIGKILL this process when its parent thread ends. Linux only, like the rest of Prunella."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start_on_node(
    node: NodeRef, command: list[str], *, log: Path, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` as `node`, in a process group of its own, appending its output to `log`."""
    variables = {**os.environ, "PRUNELLA_NODE": node.name, **(environment or {})}
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def kill_groups(processes: list[subprocess.Popen[bytes]]) -> None:
    """SIGKILL every process group and reap its leader. Works on stopped processes too."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
