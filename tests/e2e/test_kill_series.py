"""kill -9 of any process at random moments under a live Airflow: the experiment completes as if nothing had happened."""

import itertools
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from e2e.campaign import SEGMENTS, STEPS_PER_SEGMENT, Campaign
from e2e.live_airflow import LiveAirflow, live_airflow, processes_under
from prunella.checkpoint_history import list_checkpoints
from prunella.ledger import Ledger
from prunella.orchestration.claim import next_segment
from prunella.records import Stage, StageLaunched
from prunella.records.sealing import unseal
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
        killed, verified = kill_until_complete(airflow, [ledger], random.Random(seed))

    assert len(killed) == KILLS, killed
    assert_nothing_was_lost(ledger, verified[ledger.name])
    assert_nothing_ran_twice(ledger)
    assert digest_of(ledger) == unbroken.digest()


def kill_until_complete(
    airflow: LiveAirflow, ledgers: Sequence[Ledger], rng: random.Random, *, kills: int = KILLS, first: str | None = None
) -> tuple[list[str], dict[str, set[str]]]:
    """Kill random processes at random moments until every experiment is complete.

    Args:
        first: the kind to begin with, where chance shall not decide whether it is hit.

    Returns:
        What was killed, and every checkpoint ever seen verified, by experiment.
    """
    deadline = time.monotonic() + TIMEOUT_S
    killed: list[str] = []
    verified: dict[str, set[str]] = {ledger.name: set() for ledger in ledgers}
    next_kill = time.monotonic() + rng.uniform(3.0, 8.0)
    while any(next_segment(ledger) is not None for ledger in ledgers):
        assert time.monotonic() < deadline, f"not complete after {killed}"
        for ledger in ledgers:
            verified[ledger.name] |= {entry.manifest.name for entry in list_checkpoints(ledger) if entry.state == "verified"}
        if len(killed) < kills and time.monotonic() > next_kill:
            killed += kill_one(airflow, rng, kind=None if killed else first)
            next_kill = time.monotonic() + rng.uniform(2.0, 8.0)
        time.sleep(0.3)
    return killed, verified


def kill_one(airflow: LiveAirflow, rng: random.Random, *, kind: str | None = None) -> list[str]:
    """SIGKILL one process: first a kind is drawn, so that the many helpers of Airflow do not hide the few ranks."""
    kinds: dict[str, list[psutil.Process]] = {}
    for process in processes_under(airflow.settings.folder):
        if (found := kind_of(process)) is not None:
            kinds.setdefault(found, []).append(process)
    if not kinds:
        return []
    kind = kind or rng.choice(sorted(kinds))
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


def assert_nothing_ran_twice(ledger: Ledger) -> None:
    """No two runs of a segment beside each other, no two attempts, and no stage that was started beside itself."""
    for segment in range(ledger.config().segments):
        runs, attempts = ledger.runs(segment), ledger.attempts(segment)
        for before, after in itertools.pairwise(runs):
            close = ledger.closed(segment, before.run_index)
            assert close is not None, f"{after.run_id} began beside {before.run_id}"
            assert close.closed_ns <= after.opened_ns
        for earlier, later in itertools.pairwise(attempts):
            decision = ledger.decision(segment, earlier.attempt)
            assert decision is not None, f"attempt {later.attempt} of segment {segment} began beside the one before"
            assert decision.decided_ns <= later.opened_ns
        rungs = [(attempt.run_index, attempt.rung) for attempt in attempts]
        assert len(set(rungs)) == len(rungs), f"a rung of segment {segment} was opened twice: {rungs}"
    outputs = list(outputs_asked_for(ledger))
    assert any(output.endswith(f"/{Stage.TRAINING_SEGMENT}.json") for output in outputs)
    for output in outputs:
        assert_launched_once(ledger, output)


def outputs_asked_for(ledger: Ledger) -> Iterator[str]:
    """Where each stage that was asked for was to write its record."""
    segments = Path(ledger.store.root) / ledger.prefix / "segments"
    for pattern in ("*/runs/*/data_prep.request.json", "*/attempts/*/requests/*.json"):
        for path in segments.glob(pattern):
            yield json.loads(unseal(path.read_bytes(), str(path)))["output"]


def assert_launched_once(ledger: Ledger, output: str) -> None:
    """A stage was started once, and again only after the start before it had vanished; training never again."""
    found = (ledger.find(StageLaunched, ledger.launched_key(output, start)) for start in itertools.count())
    launched = list(itertools.takewhile(lambda record: record is not None, found))
    vanished = ledger.vanishings(output)
    assert launched, f"{output} was asked for, and nothing was started"
    assert len(launched) <= len(vanished) + 1, f"{output}: started {len(launched)} times, vanished {len(vanished)} times"
    for before, again in zip(vanished, launched[1:], strict=False):
        assert again is not None
        assert before.ended_ns <= again.at_ns
    assert len(launched) == 1 or launched[0].stage is not Stage.TRAINING_SEGMENT, f"{output} was started again"


def digest_of(ledger: Ledger) -> str:
    """Digest that validation gave the last checkpoint."""
    close = ledger.accepted(ledger.config().segments - 1)
    assert close is not None
    assert close.checkpoint is not None
    verdict = ledger.validation(close.checkpoint.name)
    assert verdict is not None
    assert verdict.digest is not None
    return verdict.digest
