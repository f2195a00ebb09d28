"""One round of the fabric check: start a process for every device of a team, wait as long as is fair, collect, kill.

The rendezvous is held here, not by a rank, so that no member's absence takes it away from the others. A round always ends:
within `timeout_s` for arrival, another `timeout_s` for the exchanges, and two seconds to see who is silent.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from prunella.health_gate.fabric_report import arrived_ns, last_beat_ns, read_report
from prunella.health_gate.fabric_rules import Member
from prunella.node_processes import NodeLauncher, NodeProcess, device_environment, kill_groups
from prunella.records import NodeRef

#: How long a rank must not have beaten to be called silent. Own choice 2026-11: ten heartbeats of the worker.
_SILENCE_S = 2.0
_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rank:
    rank: int
    node: str
    process: NodeProcess


def run_round(team: tuple[NodeRef, ...], *, folder: Path, timeout_s: float, launcher: NodeLauncher) -> tuple[Member, ...]:
    """Check the links among `team` once; every process is gone afterwards.

    Args:
        folder: an empty scratch folder for reports and logs.
        timeout_s: for arrival, and again for the exchanges.
    """
    started_ns = time.time_ns()
    address = launcher.own_address
    rendezvous = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    ranks: list[_Rank] = []
    try:
        _launch(team, (address, rendezvous.port), folder, timeout_s, launcher, ranks)
        if _all_arrive(ranks, folder, timeout_s):
            _exchange(ranks, timeout_s)
        absences = _absences(ranks, folder, timeout_s)
    finally:
        kill_groups([entry.process for entry in ranks])
    return tuple(_member(entry, folder, started_ns, absences[entry.rank]) for entry in ranks)


def _launch(
    team: tuple[NodeRef, ...],
    meeting_point: tuple[str, int],
    folder: Path,
    timeout_s: float,
    launcher: NodeLauncher,
    ranks: list[_Rank],
) -> None:
    """Start one process a device, entering each in `ranks` at once, so that whoever fails on the way leaves none behind."""
    seats = [(node, local_rank) for node in team for local_rank in range(node.devices)]
    # The workers' own time-out is longer than the stage's patience: the stage decides, with everybody's report in hand.
    command = [sys.executable, "-m", "prunella.health_gate.fabric_worker", str(folder), f"{3 * timeout_s + 10:g}"]
    for rank, (node, local_rank) in enumerate(seats):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(len(seats)),
            "MASTER_ADDR": meeting_point[0],
            "MASTER_PORT": str(meeting_point[1]),
            "OMP_NUM_THREADS": "1",
            **device_environment(team, node, is_one_machine=launcher.is_one_machine),
        }
        log = folder / f"{node.name}.log"
        process = launcher.start(node, command, log=log, environment=environment)
        ranks.append(_Rank(rank=rank, node=node.name, process=process))


def _all_arrive(ranks: list[_Rank], folder: Path, timeout_s: float) -> bool:
    """Whether everybody came. Whoever ended is not waited for; the others get all their time, so none is blamed early."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        missing = [entry for entry in ranks if arrived_ns(folder, entry.rank) is None]
        if all(entry.process.poll() is not None for entry in missing):
            return not missing
        time.sleep(_POLL_S)
    return False


def _exchange(ranks: list[_Rank], timeout_s: float) -> None:
    """Wait until everybody is done, or the time is up; soon after one failed the others cannot go on either."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        codes = [entry.process.poll() for entry in ranks]
        if all(code is not None for code in codes):
            return
        if any(codes):
            deadline = min(deadline, time.monotonic() + _SILENCE_S)
        time.sleep(_POLL_S)


def _absences(ranks: list[_Rank], folder: Path, timeout_s: float) -> dict[int, str]:
    """Why each rank cannot be judged: it never came, it died without a word, or it fell silent. Empty for the present."""
    before = {entry.rank: last_beat_ns(folder, entry.rank) for entry in ranks}
    if any(entry.process.poll() is None for entry in ranks):
        time.sleep(_SILENCE_S)
    return {entry.rank: _absence(entry, folder, before[entry.rank], timeout_s) for entry in ranks}


def _absence(entry: _Rank, folder: Path, beat_ns: int | None, timeout_s: float) -> str:
    report, code = read_report(folder, entry.rank), entry.process.poll()
    if code is not None:
        has_said_why = report is not None and (report.is_finished or bool(report.error))
        return "" if has_said_why else f"ended without a report, exit status {code}; see its log in scratch"
    if beat_ns is None:
        return f"did not arrive within {timeout_s:g} s"
    is_silent = last_beat_ns(folder, entry.rank) == beat_ns
    return f"fell silent: no heartbeat for {_SILENCE_S:g} s" if is_silent else ""


def _member(entry: _Rank, folder: Path, started_ns: int, absence: str) -> Member:
    arrival_ns = arrived_ns(folder, entry.rank)
    return Member(
        rank=entry.rank,
        node=entry.node,
        arrival_ms=None if arrival_ns is None else (arrival_ns - started_ns) / 1e6,
        absence=absence,
        report=read_report(folder, entry.rank),
    )
