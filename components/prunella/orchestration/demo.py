"""The demonstration: a small mixture of experts trains under a live Airflow; a rank dies, a node turns bad, a checkpoint rots.

Everything is real and on this machine: the scheduler, the DAG, the faults, the recovery. It ends with a report, a summary
and the numbers, in one folder that is made anew each time.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from prunella.errors import ConfigError, PrunellaError, TrackingUnavailable
from prunella.launch import door
from prunella.launch.engine import container_engine
from prunella.ledger import Ledger
from prunella.orchestration import live
from prunella.orchestration.airflow_api import AirflowApi, AirflowAway
from prunella.orchestration.claim import continuation, next_segment, run_id_for
from prunella.orchestration.progress import incidents, progress
from prunella.orchestration.publishing import publish, report_path, summary_of
from prunella.orchestration.run import unfired_faults
from prunella.orchestration.submit import Submission, open_experiment
from prunella.storage import open_store

logger = logging.getLogger(__name__)

EXPERIMENT = "demo"
DAG_ID = "pretrain_segment"
FAULTS = ("kill:rank=1,step=27", "bad-node:node=node-1,segment=1", "corrupt-checkpoint:step=120")
#: The demonstration gives up after this long. Source: own measurement 2026-11, about three times its length on 2 cores.
TIMEOUT_S = 2400.0
_MARK = ".prunella-demo"
_POLL_S = 0.5


def demo(folder: Path, console: Console) -> dict[str, Any]:
    """Run the demonstration in `folder`; returns the summary.

    Raises:
        ConfigError: the folder holds what no demonstration made or somebody works in it, or stages are to run on a cluster.
        PrunellaError: Airflow did not start, or the experiment did not end in time.
    """
    if door.launcher() == door.KUBERNETES:
        raise ConfigError(f"{door.VARIABLE}=kubernetes: the demonstration has three nodes, all on this machine; unset it")
    started = time.monotonic()
    settings = live.settings_for(folder, with_mlflow=False)
    _make_room(settings)
    live.scratch_environment(settings)
    ledger = open_experiment(
        Submission(root=settings.root, experiment=EXPERIMENT, recipe="tiny_moe", schedule="continuous", faults=FAULTS)
    )
    as_what = "; every stage is a container" if door.launcher() == "container" else ""
    console.print(f"[bold]Prunella[/] trains {EXPERIMENT!r} and breaks it three times: {', '.join(FAULTS)}{as_what}")
    with live.occupied(folder), container_engine(), live.start(settings):
        console.print(live.describe(settings))
        api = AirflowApi(settings.airflow_url, live.USER, live.password(settings))
        with _spinner(console) as show:
            show("starting Airflow")
            api.wait_until_ready(DAG_ID)
            api.trigger(DAG_ID, conf=continuation(ledger), run_id=_first_run_id(ledger))
            _follow(ledger, api, show, console)
    console.print(f"Airflow has stopped; {time.monotonic() - started:.0f} s since the start")
    return _publish(ledger, settings, folder)


def _make_room(settings: live.LiveSettings) -> None:
    """An empty folder; one of an earlier demonstration is replaced, anything else is left alone."""
    folder = settings.folder
    try:
        if folder.exists() and any(folder.iterdir()):
            _check_replaceable(settings)
            with live.occupied(folder):
                shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MARK).touch()
    except OSError as error:
        raise ConfigError(f"--dir {folder}: cannot be made anew ({error.strerror or error}); choose another folder") from error


def _check_replaceable(settings: live.LiveSettings) -> None:
    """Refuse a folder that holds more than an earlier demonstration, such as experiments that its pages were used to start."""
    if not (settings.folder / _MARK).exists():
        raise ConfigError(f"--dir {settings.folder}: not empty, and not of an earlier demonstration; choose another folder")
    others = [name for name in open_store(settings.root).list("experiments") if name != EXPERIMENT]
    if others:
        raise ConfigError(
            f"--dir {settings.folder}: expected nothing but an earlier demonstration, found experiments that would be lost: "
            f"{', '.join(others)}; choose another with `prunella demo --dir`, or remove the folder if they may go"
        )


def _first_run_id(ledger: Ledger) -> str:
    segment = next_segment(ledger)
    assert segment is not None, "a new experiment has a first segment"
    return run_id_for(ledger, segment)


@contextmanager
def _spinner(console: Console) -> Iterator[Callable[[str], None]]:
    """A live line on a terminal; elsewhere a line whenever the activity changes."""
    if console.is_terminal:
        with console.status("starting") as status:
            yield status.update
        return
    last = ""

    def show(line: str) -> None:
        nonlocal last
        activity = line.split(" step ")[0]
        if activity != last:
            last = activity
            console.print(line)

    yield show


def _follow(ledger: Ledger, api: AirflowApi, show: Callable[[str], None], console: Console) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    told = 0
    while next_segment(ledger) is not None:
        show(progress(ledger).line())
        known = incidents(ledger)
        for segment, attempt, incident in known[told:]:
            told += 1
            console.print(
                f"[yellow]incident[/] segment {segment} attempt {attempt}: [bold]{incident.diagnosis.cause}[/] "
                f"{incident.diagnosis.message} -> [green]{incident.action}[/] (row {incident.row})"
            )
        _check_alive(ledger, api, deadline)
        time.sleep(_POLL_S)
    _wait_for_runs(api, deadline, show)


def _check_alive(ledger: Ledger, api: AirflowApi, deadline: float) -> None:
    segment = next_segment(ledger)
    if time.monotonic() > deadline:
        raise PrunellaError(f"the demonstration did not end within {TIMEOUT_S:g} s; `prunella status` says where it is")
    runs = ledger.runs(segment) if segment is not None else []
    close = ledger.closed(runs[-1].segment, runs[-1].run_index) if runs else None
    if close is not None and close.outcome != "accepted":
        raise PrunellaError(f"segment {close.segment} {close.outcome}: {close.message}")


def _wait_for_runs(api: AirflowApi, deadline: float, show: Callable[[str], None]) -> None:
    """The last close is in the ledger before its task has published and ended."""
    show("closing")
    while _may_be_running(api) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _may_be_running(api: AirflowApi) -> bool:
    """Whether a run goes on, as far as Airflow can be asked: the experiment is complete, whatever Airflow stumbles over."""
    try:
        return "running" in api.run_states(DAG_ID).values()
    except AirflowAway as error:
        logger.warning("airflow_away error=%s", error)
        return True


def _publish(ledger: Ledger, settings: live.LiveSettings, folder: Path) -> dict[str, Any]:
    try:
        publish(ledger)
    except TrackingUnavailable as error:
        logger.warning("publishing_failed error=%s", error)
    shutil.copyfile(report_path(ledger), folder / "report.html")
    summary = summary_of(ledger)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2))
    if unfired := unfired_faults(ledger):
        raise PrunellaError(f"faults that never fired: {', '.join(unfired)}")
    return summary
