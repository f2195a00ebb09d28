"""One torchrun agent a node, each in a process group of its own, and what their logs say of ranks that were killed.

Agents never restart anything: the policy decides about that. Their exit code is always 1 and is not looked at.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from prunella.config import Config
from prunella.node_processes import (
    LOOPBACK,
    Identity,
    NodeLauncher,
    NodeProcess,
    device_environment,
    end_processes,
)
from prunella.records import NodeRef
from prunella.training_segment.heartbeat import read_heartbeat
from prunella.training_segment.job import node_log

#: torchrun's report of a dead rank (torch 2.13, elastic/multiprocessing/api.py); negative codes are signals.
_REPORT = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: \d+ \(pid: (\d+)\)")
_TAIL_BYTES = 4000


def start_agents(config: Config, nodes: tuple[NodeRef, ...], scratch: Path, launcher: NodeLauncher) -> list[NodeProcess]:
    """Start every node's agent; the ranks find each other through the first one."""
    meeting_point = launcher.meeting_point(nodes[0])
    return [
        launcher.start(
            node,
            _command(len(nodes), index, node, meeting_point, scratch),
            log=node_log(scratch, node),
            environment={
                **_environment(config.parallel.threads_per_rank, meeting_point),
                **device_environment(nodes, node, is_one_machine=launcher.is_one_machine),
            },
        )
        for index, node in enumerate(nodes)
    ]


def _command(nnodes: int, index: int, node: NodeRef, meeting_point: tuple[str, int], scratch: Path) -> list[str]:
    address, port = meeting_point
    options = {
        "nnodes": nnodes,
        "node-rank": index,
        "nproc-per-node": node.devices,
        "master-addr": address,
        "master-port": port,
        "max-restarts": 0,
        "monitor-interval": 0.1,
        "log-dir": scratch
        / "torchrun",  # by default a folder in the system's temporary one, which a killed agent leaves behind
        **({"local-addr": address} if address == LOOPBACK else {}),
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", *(f"--{name}={value}" for name, value in options.items())]
    return [*torchrun, "-m", "prunella.training_segment.worker", "--scratch", str(scratch)]


def _environment(threads: int, meeting_point: tuple[str, int]) -> dict[str, str]:
    """Threads are fixed by configuration, because another number rounds differently (DESIGN 4.11)."""
    counted = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    # Nodes of one machine meet on its loopback: the host's own name may not resolve.
    interface = {"GLOO_SOCKET_IFNAME": "lo"} if meeting_point[0] == LOOPBACK else {}
    return {
        **dict.fromkeys(counted, str(threads)),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # asked for by torch.use_deterministic_algorithms
        **interface,
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


def end_ranks(scratch: Path, ranks: Iterable[int]) -> None:
    """SIGKILL those of the ranks, all of this machine, that still live, and wait until they are gone. torchrun puts ranks in
    sessions of their own, so killing an agent's group does not reach them; the kernel does when the agent is gone, but says
    nothing when it has."""
    beats = [beat for rank in ranks if (beat := read_heartbeat(scratch, rank)) is not None]
    end_processes([Identity(beat.pid, beat.process_start) for beat in beats])
