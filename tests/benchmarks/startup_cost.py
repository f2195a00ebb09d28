"""What starting a stage costs under each launcher: the same small experiment as processes, as containers and under KFP.

Run by hand, after `make images`:

    .venv/bin/python tests/benchmarks/startup_cost.py            # local, container, kfp
    .venv/bin/python tests/benchmarks/startup_cost.py local kfp

A stage's row is from the moment the launcher decided to start it until it began its work, imports included, as the
ledger says. *whole* is what the experiment took beyond its stages' own work, for each of them: what the orchestrator
adds is in it. Medians of the stages of one experiment.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from e2e.campaign import Campaign, assert_complete
from engine import engine_with
from prunella.launch.images import TRAINER, WORKER
from prunella.ledger import LAUNCHED, Ledger, open_ledger
from prunella.records import RECORD_OF, FailedRecord, StageLaunched

LAUNCHERS = {"local": ("run",), "container": ("run",), "kfp": ("pipeline", "run-local")}
SUFFIX = f"{LAUNCHED}0.json"


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    which = f"which of {', '.join(LAUNCHERS)}; all by default"
    parser.add_argument("launchers", nargs="*", default=list(LAUNCHERS), metavar="LAUNCHER", help=which)
    chosen = parser.parse_args().launchers
    if unknown := set(chosen) - set(LAUNCHERS):
        parser.error(f"expected {which}; found {', '.join(sorted(unknown))}")
    rows: dict[str, dict[str, float]] = {}
    digests = set()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if "container" in chosen:
            stack.enter_context(engine_with(TRAINER, WORKER))
            print(f"containers: {driver()}")
        for name in chosen:
            os.environ["PRUNELLA_LAUNCH"] = "container" if name == "container" else "local"
            campaign = Campaign(Path(folder) / name, runs_by=LAUNCHERS[name])
            started = time.monotonic()
            assert_complete(campaign.run(), campaign)
            rows[name] = costs(campaign, time.monotonic() - started)
            digests.add(campaign.digest())
    print_table(rows)
    print(f"digests: {'one' if len(digests) == 1 else f'{len(digests)} DIFFERENT ONES'}")


def driver() -> str:
    """The engine's storage driver, on which a container's first moment depends."""
    import docker

    return str(docker.from_env().info()["Driver"])


def costs(campaign: Campaign, elapsed_s: float) -> dict[str, float]:
    """Seconds by stage, and for the whole."""
    ledger = open_ledger(str(campaign.root), "experiment")
    starts: dict[str, list[float]] = defaultdict(list)
    work_s = 0.0
    for key, launched in launches(ledger):
        record = ledger.find_stage_record(RECORD_OF[launched.stage], key.removesuffix(SUFFIX) + ".json")
        assert record is not None
        assert not isinstance(record, FailedRecord)
        starts[launched.stage.value].append((record.started_ns - launched.at_ns) / 1e9)
        work_s += (record.ended_ns - record.started_ns) / 1e9
    stages = sum(len(seconds) for seconds in starts.values())
    every = [second for seconds in starts.values() for second in seconds]
    medians = {stage: statistics.median(seconds) for stage, seconds in starts.items()}
    return {**medians, "any stage": statistics.median(every), "whole": (elapsed_s - work_s) / stages}


def launches(ledger: Ledger) -> Iterator[tuple[str, StageLaunched]]:
    """Every first start of a stage that an experiment recorded."""
    root = Path(ledger.store.root)
    for path in sorted((root / ledger.prefix).rglob(f"*{SUFFIX}")):
        key = path.relative_to(root).as_posix()
        found = ledger.find(StageLaunched, key)
        assert found is not None
        yield key, found


def print_table(rows: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(rows.values())))
    print(f"{'seconds':24}" + "".join(f"{launcher:>12}" for launcher in rows))
    for name in names:
        print(f"{name:24}" + "".join(f"{row.get(name, float('nan')):12.2f}" for row in rows.values()))


if __name__ == "__main__":
    try:
        main()
    except subprocess.TimeoutExpired as error:
        sys.exit(f"not done in time: {error}")
