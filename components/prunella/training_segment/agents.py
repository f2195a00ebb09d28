"""One torchrun agent a node, each in a process group of its own, and what their logs say of ranks that were killed.

Agents never restart anything: the policy decides about that. Their exit code is always 1 and is not looked at.
"""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from prunella.config import Config
from prunella.node_processes import free_port, start_on_node
from prunella.records import NodeRef
from prunella.training_segment.heartbeat import Heartbeat, process_state, read_heartbeat
from prunella.training_segment.job import node_log

logger = logging.getLogger(__name__)

_ADDRESS = "127.0.0.1"
#: torchrun's report of a dead rank (torch 2.13, elastic/multiprocessing/api.py); negative codes are signals.
_REPORT = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: \d+ \(pid: (\d+)\)")
_TAIL_BYTES = 4000
#: The kernel takes back a killed process within this long, unless it hangs in a device. Source: own choice 2026-11.
_GONE_S = 10.0


def start_agents(config: Config, nodes: tuple[NodeRef, ...], scratch: Path) -> list[subprocess.Popen[bytes]]:
    """Start every node's agent; the ranks find each other through the first one."""
    port = free_port()
    return [
        start_on_node(
            node,
            _command(len(nodes), index, node, port, scratch),
            log=node_log(scratch, node),
            environment=_environment(config.parallel.threads_per_rank),
        )
        for index, node in enumerate(nodes)
    ]


def _command(nnodes: int, index: int, node: NodeRef, port: int, scratch: Path) -> list[str]:
    options = {
        "nnodes": nnodes,
        "node-rank": index,
        "nproc-per-node": node.devices,
        "master-addr": _ADDRESS,
        "local-addr": _ADDRESS,
        "master-port": port,
        "max-restarts": 0,
        "monitor-interval": 0.1,
        "log-dir": scratch
        / "torchrun",  # by default a folder in the system's temporary one, which a killed agent leaves behind
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", *(f"--{name}={value}" for name, value in options.items())]
    return [*torchrun, "-m", "prunella.training_segment.worker", "--scratch", str(scratch)]


def _environment(threads: int) -> dict[str, str]:
    """Threads are fixed by configuration, because another number rounds differently (DESIGN 4.11)."""
    counted = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {
        **dict.fromkeys(counted, str(threads)),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # asked for by torch.use_deterministic_algorithms
        "GLOO_SOCKET_IFNAME": "lo",  # nodes of one machine; the host's own name may not resolve
        "PYTHONUNBUFFERED": "1",
    }


def reported_exit_codes(scratch: Path, nodes: tuple[NodeRef, ...]) -> dict[int, int]:
    """pid to exit code of the ranks whose end an agent reported."""
    codes = {}
    for node in nodes:
        log = node_log(scratch, node)
        for code, pid in _REPORT.findall(log.read_text(errors="replace") if log.exists() else ""):
            codes[int(pid)] = int(code)
    return codes


def log_tail(scratch: Path, node: NodeRef) -> str:
    """The end of a node's log."""
    log = node_log(scratch, node)
    return log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace") if log.exists() else ""


def end_ranks(scratch: Path, world_size: int) -> None:
    """SIGKILL every rank that still lives, and wait until it is gone. torchrun puts ranks in sessions of their own, so killing
    an agent's group does not reach them; the kernel does when the agent is gone, but says nothing when it has."""
    beats = [beat for rank in range(world_size) if (beat := read_heartbeat(scratch, rank)) is not None]
    deadline_s = time.monotonic() + _GONE_S
    while alive := [beat for beat in beats if _lives(beat)]:
        for beat in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(beat.pid, signal.SIGKILL)
        if time.monotonic() > deadline_s:
            logger.error("ranks_not_gone ranks=%s pids=%s", [beat.rank for beat in alive], [beat.pid for beat in alive])
            return
        time.sleep(0.01)


def _lives(beat: Heartbeat) -> bool:
    return process_state(beat.pid, beat.process_start) is not None
