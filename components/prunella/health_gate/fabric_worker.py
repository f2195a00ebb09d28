"""One rank of the fabric check: `python -m prunella.health_gate.fabric_worker FOLDER TIMEOUT_S`.

Beats from the moment it can run, joins the others through the stage's store, does every exchange and reports each as it
ends. Judges nothing and writes only to FOLDER. Exits 0 when it did everything, whatever the results; 1 when it was stopped.
"""

import os
import sys
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from prunella.health_gate.fabric_exchanges import EXCHANGES
from prunella.health_gate.fabric_report import RankReport, arrive, beat, write_report
from prunella.node_processes import own_device
from prunella.redaction import redacted

#: Time between heartbeats. Own choice 2026-11: the stage waits ten of them before it calls a rank silent.
BEAT_S = 0.2


def main(folder: Path, timeout_s: float) -> int:
    """Take part as the rank that RANK, WORLD_SIZE and PRUNELLA_NODE name."""
    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    arrive(folder, rank)
    _start_beating(folder, rank)
    report = RankReport(rank=rank, node=os.environ["PRUNELLA_NODE"])
    try:
        device = _join(rank, world_size, timeout_s)
        report = replace(report, backend=dist.get_backend())
        for exchange in EXCHANGES:
            report = replace(report, steps=(*report.steps, exchange(rank, world_size, device)))
            write_report(folder, report)
    except RuntimeError as error:  # what torch.distributed raises for every lost peer, time-out and broken link
        write_report(folder, replace(report, error=redacted(f"{type(error).__name__}: {error}")))
        return 1
    write_report(folder, replace(report, is_finished=True))
    dist.destroy_process_group()
    return 0


def _start_beating(folder: Path, rank: int) -> None:
    """Beat from a thread of its own: an exchange that hangs leaves it running, a stopped or dead process does not."""

    def keep_beating() -> None:
        while True:
            beat(folder, rank)
            time.sleep(BEAT_S)

    threading.Thread(target=keep_beating, daemon=True).start()


def _join(rank: int, world_size: int, timeout_s: float) -> torch.device:
    """Join the group: NCCL where every rank of this machine has a GPU of its own, else gloo. Returns the device to use."""
    index, devices = own_device()
    is_nccl = torch.cuda.is_available() and torch.cuda.device_count() >= devices
    timeout = timedelta(seconds=timeout_s)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=timeout)  # type: ignore[attr-defined]
    device = torch.device("cuda", index) if is_nccl else torch.device("cpu")
    if is_nccl:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if is_nccl else "gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
    return device


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
