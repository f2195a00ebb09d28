"""What people look at, derived from the ledger and disposable: the report, the mirror in MLflow, where both are found.

It lies under `published/<experiment>/` of a folder root; for a bucket, under PRUNELLA_PUBLISHED on this machine. Publishing
may fail without harm: the next close does it again.
"""

import fcntl
import json
import logging
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunella.errors import TrackingUnavailable
from prunella.launch import door
from prunella.ledger import Ledger
from prunella.scratch import write_atomically

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """Where MLflow keeps an experiment."""

    run_id: str
    experiment_id: str

    def page(self, address: str) -> str:
        """Its page on an MLflow server at `address`."""
        return f"{address.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.run_id}"


def published_root(root: str) -> Path:
    """The folder of everything published of a root."""
    if "://" not in root:
        return Path(root) / "published"
    data_home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    base = Path(os.environ.get("PRUNELLA_PUBLISHED") or data_home / "prunella" / "published")
    return base / root.partition("://")[2].strip("/").replace("/", "-")


def _folder(ledger: Ledger) -> Path:
    return published_root(ledger.store.root) / ledger.name


def folder(ledger: Ledger) -> Path:
    """Where the published files of an experiment lie, created if absent. Raises OSError; never makes a folder root itself."""
    path = _folder(ledger)
    path.parent.mkdir(exist_ok=True, parents="://" in ledger.store.root)
    path.mkdir(exist_ok=True)
    return path


def report_path(ledger: Ledger) -> Path:
    """The experiment's report.html."""
    return folder(ledger) / "report.html"


def published(ledger: Ledger) -> Published | None:
    """Where the last mirror put the experiment; None before the first."""
    path = _folder(ledger) / "mlflow.json"
    return Published(**json.loads(path.read_text())) if path.exists() else None


def tracking_uri(ledger: Ledger) -> str:
    """The configured tracking server, else MLFLOW_TRACKING_URI, else a SQLite store beside what is published."""
    chosen = ledger.config().tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return chosen or f"sqlite:///{published_root(ledger.store.root) / 'mlflow.db'}"


def publish(ledger: Ledger) -> Published:
    """Write the report, then bring MLflow up to date with it attached.

    Raises:
        TrackingUnavailable: MLflow could not be reached; the report is written all the same. Or there is no room for it.
    """
    try:
        return _publish(ledger)
    except OSError as error:
        raise TrackingUnavailable(
            f"nothing can be published under {_folder(ledger)} ({error.strerror or error}); training does not need it: "
            "make room, then run `prunella publish`"
        ) from error


def _publish(ledger: Ledger) -> Published:
    from prunella.tracking.mirror import mirror
    from prunella.tracking.report import write_report

    settings, known = ledger.config().tracking, published(ledger)
    with _turn(ledger):
        write_report(ledger, report_path(ledger))
        result = mirror(
            ledger,
            uri=tracking_uri(ledger),
            experiment_name=settings.experiment,
            report=report_path(ledger),
            known_run_id=known.run_id if known is not None else None,
            join_run_id=os.environ.get("MLFLOW_RUN_ID"),
            timeout_s=settings.timeout_s,
        )
        note = {"run_id": result.run_id, "experiment_id": result.experiment_id}
        write_atomically(folder(ledger) / "mlflow.json", json.dumps(note))
    return Published(**note)


def publish_apart(ledger: Ledger, *, is_awaited: bool) -> None:
    """`publish` in a process of its own: Airflow's side needs neither MLflow nor matplotlib.

    Args:
        is_awaited: wait for it, within its time. Between two segments nobody waits: training goes on, and the next
            publication says everything again. Two at once take turns. Where stages are pods it is waited for in any case:
            Airflow's worker may be a pod too, which takes along whatever it has started.
    """
    try:
        _start_publishing(ledger, is_awaited=is_awaited)
    except OSError as error:
        logger.warning("publishing_not_started error=%s", error)


def _start_publishing(ledger: Ledger, *, is_awaited: bool) -> None:
    timeout_s = ledger.config().tracking.timeout_s
    arguments = ["publish", "--root", ledger.store.root, "--experiment", ledger.name]
    log = folder(ledger) / "publish.log"
    process = door.start_command(arguments, log=log, writes=_written(ledger))
    if not is_awaited and door.launcher() != door.KUBERNETES:
        return
    try:
        code = process.wait(2 * timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait(timeout_s)
    if code:
        logger.warning("publishing_failed exit_code=%s log=%s", code, log)


def _written(ledger: Ledger) -> list[Path]:
    """The folders a publication writes to, wherever it runs: what is published, and a SQLite store of MLflow's."""
    root, uri = ledger.store.root, tracking_uri(ledger)
    store = [Path(uri.removeprefix("sqlite:///")).parent] if uri.startswith("sqlite:///") else []
    return [Path(root) if "://" not in root else published_root(root), *store]


@contextmanager
def _turn(ledger: Ledger) -> Iterator[None]:
    """One publication of an experiment at a time on this machine; the kernel releases the turn of a dead one."""
    with (folder(ledger) / "publish.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def summary_of(ledger: Ledger) -> dict[str, Any]:
    """The experiment's summary document, as of now."""
    from prunella.tracking.history import read_history
    from prunella.tracking.summary import document, summary

    found = published(ledger)
    run_id = found.run_id if found else None
    return document(summary(read_history(ledger), mlflow_run_id=run_id, now_ns=time.time_ns()))
