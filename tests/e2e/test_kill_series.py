"""kill -9 of any process at random moments under a live Airflow: the experiment completes as if nothing had happened."""

import random
import time
from pathlib import Path

import psutil
import pytest

from e2e.campaign import SEGMENTS, STEPS_PER_SEGMENT, Campaign
from e2e.live_airflow import LiveAirflow, live_airflow, processes_under
from prunella.checkpoint_history import list_checkpoints
from prunella.ledger import Ledger
from prunella.orchestration.claim import next_segment
from prunella.tracking.history import read_history

#: All steps of the unbroken experiment.
STEPS = SEGMENTS * STEPS_PER_SEGMENT
#: More cuts than the unbroken experiment has, so that twenty kills find a segment to hit.
CUTS = 3
KILLS = 20
#: Generous: twenty kills, each costing at most a restart of Airflow and an attempt.
TIMEOUT_S = 1500.0


#: Parts of command lines, the more telling first.
KINDS = (
    "stage data_prep",
    "stage gate_node",
    "stage gate_fabric",
    "stage training_segment",
    "stage checkpoint_validation",
    "stage evaluation",
    "training_segment.worker",
    "torch.distributed.run",
    "fabric_worker",
    "publish",
    "airflow api",
    "airflow scheduler",
    "airflow dag-processor",
    "airflow triggerer",
    "airflow worker",
)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("seed", [11])
def test_twenty_kills_of_any_process_end_with_the_unbroken_digest(tmp_path: Path, seed: int, unbroken: Campaign) -> None:
    with live_airflow(tmp_path / "live") as airflow:
        ledger = airflow.open("campaign", f"steps_per_segment={STEPS // CUTS}", segments=CUTS, schedule="continuous")
        airflow.trigger(ledger)
        killed, verified = kill_until_complete(airflow, ledger, random.Random(seed))

    assert len(killed) == KILLS, killed
    assert_nothing_was_lost(ledger, verified)
    assert digest_of(ledger) == unbroken.digest()


def kill_until_complete(
    airflow: LiveAirflow, ledger: Ledger, rng: random.Random, *, kills: int = KILLS
) -> tuple[list[str], set[str]]:
    """Kill random processes at random moments; returns what was killed, and every checkpoint ever seen verified."""
    deadline = time.monotonic() + TIMEOUT_S
    killed: list[str] = []
    verified: set[str] = set()
    next_kill = time.monotonic() + rng.uniform(3.0, 8.0)
    while next_segment(ledger) is not None:
        assert time.monotonic() < deadline, f"not complete after {killed}"
        verified |= {entry.manifest.name for entry in list_checkpoints(ledger) if entry.state == "verified"}
        if len(killed) < kills and time.monotonic() > next_kill:
            killed += kill_one(airflow, rng)
            next_kill = time.monotonic() + rng.uniform(2.0, 8.0)
        time.sleep(0.3)
    return killed, verified


def kill_one(airflow: LiveAirflow, rng: random.Random) -> list[str]:
    """SIGKILL one process: first a kind is drawn, so that the many helpers of Airflow do not hide the few ranks."""
    kinds: dict[str, list[psutil.Process]] = {}
    for process in processes_under(airflow.settings.folder):
        if (kind := kind_of(process)) is not None:
            kinds.setdefault(kind, []).append(process)
    if not kinds:
        return []
    kind = rng.choice(sorted(kinds))
    victim = rng.choice(sorted(kinds[kind], key=lambda process: process.pid))
    try:
        victim.kill()
    except psutil.NoSuchProcess:
        return []
    return [kind]


def kind_of(process: psutil.Process) -> str | None:
    """What a process is; None for what has just ended."""
    try:
        line = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return None
    return next((name for name in KINDS if name in line), None)


def assert_nothing_was_lost(ledger: Ledger, verified: set[str]) -> None:
    """Every step kept once, in order; every checkpoint that was verified is still."""
    kept = [step.step for step in read_history(ledger).kept_steps]
    assert kept == list(range(1, STEPS + 1))
    assert verified <= {entry.manifest.name for entry in list_checkpoints(ledger) if entry.state in ("verified", "pruned")}


def digest_of(ledger: Ledger) -> str:
    """Digest that validation gave the last checkpoint."""
    close = ledger.accepted(ledger.config().segments - 1)
    assert close is not None
    assert close.checkpoint is not None
    verdict = ledger.validation(close.checkpoint.name)
    assert verdict is not None
    assert verdict.digest is not None
    return verdict.digest
