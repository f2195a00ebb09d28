"""Mirror an experiment's ledger into MLflow. Only the files `mirror*.py` and `mlflow_door.py` import mlflow.

One parent run an experiment, one child run an attempt, checkpoints as logged models. It reads back what is there and adds what
is missing, with stamps taken from the ledger, so that running it twice adds nothing, running it after a kill completes the
work, and running it after an absence catches up. It trusts the ledger alone; MLflow is never read for truth. It never stops
training: whatever goes wrong over there is one `TrackingUnavailable`, within a bound of time.

The mirror of an experiment has one writer at a time (its `close_segment`, or a person's command): two at once could each
create a run. A parent is found again by the digest of the experiment's opening record, wherever its root lies.
"""

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from prunella.ledger import Ledger
from prunella.tracking import description
from prunella.tracking.history import Attempt, History, read_history
from prunella.tracking.incidents import IncidentStory, stories
from prunella.tracking.mirror_models import mirror_checkpoints, set_aliases
from prunella.tracking.mirror_runs import attempt_run, attempt_runs, mlflow_experiment, parent_run
from prunella.tracking.mirror_values import (
    identities,
    log_dataset,
    log_params,
    log_points,
    send_points,
    set_status,
    set_tags,
    unsent,
)
from prunella.tracking.mlflow_door import Door, opened
from prunella.tracking.series import CLOSE_KEYS, attempt_points, close_points, close_stamp, experiment_points
from prunella.tracking.summary import state

logger = logging.getLogger(__name__)

_MIRRORED_TAG = "prunella.mirrored_sha256"
_TABLE = "incidents.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class MirrorResult:
    """Where the experiment is found in MLflow, and how many values of series this call added."""

    run_id: str
    experiment_id: str
    attempt_run_ids: tuple[str, ...]
    points_added: int


def mirror(
    ledger: Ledger,
    *,
    uri: str,
    experiment_name: str = "prunella",
    report: Path | None = None,
    known_run_id: str | None = None,
    join_run_id: str | None = None,
    timeout_s: float = 120.0,
) -> MirrorResult:
    """Bring MLflow up to what the ledger says.

    Args:
        uri: the tracking server or store, for example `http://localhost:5000` or `sqlite:////path/mlflow.db`.
        experiment_name: the MLflow experiment that holds all experiments of Prunella, so that they can be compared.
        report: a `report.html` to attach to the parent run.
        known_run_id: where an earlier mirror put the experiment, if that is remembered; it is believed only if it fits.
        join_run_id: a run that somebody opened for this experiment (Kubeflow does). A new experiment becomes that run
            instead of opening another; one that has a run already leaves its address there.
        timeout_s: give up after this long; what is missing then is added by the next call.

    Raises:
        TrackingUnavailable: MLflow does not answer, refuses, or is too slow. Warn and go on.
        StorageError: the ledger cannot be read.
    """
    history = read_history(ledger)
    with opened(uri, timeout_s=timeout_s) as door:
        door.experiment_id = mlflow_experiment(door, experiment_name)
        parent_id = parent_run(door, history, known_run_id=known_run_id, join_run_id=join_run_id)
        return _mirror(door, history, parent_id, report)


def _mirror(door: Door, history: History, parent_id: str, report: Path | None) -> MirrorResult:
    """Attempts first, then the parent, then what refers to both."""
    told, known = stories(history), attempt_runs(door, parent_id)
    children = tuple(
        _mirror_attempt(door, history, told, attempt, attempt_run(door, parent_id, attempt, known))
        for attempt in history.attempts
    )
    log_params(door, parent_id, description.config_params(history))
    log_dataset(door, parent_id, history)
    models = mirror_checkpoints(door, history, parent_id)
    _mirror_series(door, history, told, parent_id, models)
    set_aliases(door, history, models)
    _log_table(door, parent_id, description.incident_table(told))
    _log_report(door, parent_id, report)
    set_tags(door, parent_id, description.experiment_tags(history) | {"mlflow.note.content": description.note(history)})
    set_status(door, parent_id, *_parent_status(history))
    logger.info("experiment_mirrored run_id=%s points_added=%s", parent_id, door.points_added)
    return MirrorResult(
        run_id=parent_id, experiment_id=door.experiment_id, attempt_run_ids=children, points_added=door.points_added
    )


def _parent_status(history: History) -> tuple[str, int | None]:
    status = description.STATUS[state(history)]
    closes = [close.closed_ns for _, close in history.runs if close is not None]
    return status, (None if status == "RUNNING" else max(closes))


def _mirror_attempt(door: Door, history: History, told: Sequence[IncidentStory], attempt: Attempt, run_id: str) -> str:
    """One child run. A child that already shows all of this is left alone: a catch-up costs what is missing."""
    door.check_deadline()
    points, tags = attempt_points(attempt), description.attempt_tags(attempt, told)
    status, ended_ns = description.attempt_status(history, attempt)
    mark = sha256(repr((points, tags, status)).encode()).hexdigest()
    if door.run(run_id).data.tags.get(_MIRRORED_TAG) != mark:
        log_points(door, run_id, points, {}, history)
        set_status(door, run_id, status, ended_ns)
        set_tags(door, run_id, tags | {_MIRRORED_TAG: mark})
    return run_id


def _mirror_series(
    door: Door, history: History, told: Sequence[IncidentStory], parent_id: str, models: Mapping[str, str]
) -> None:
    """The parent's series. What MLflow has of them is asked for one by one, so not when it was left whole."""
    points = experiment_points(history, told)
    stamps = [close_stamp(history, close) for _, close in history.runs if close is not None]
    mark = sha256(repr((points, stamps)).encode()).hexdigest()
    if door.run(parent_id).data.tags.get(_MIRRORED_TAG) != mark:
        log_points(door, parent_id, points, models, history)
        _mirror_closes(door, history, parent_id)
        set_tags(door, parent_id, {_MIRRORED_TAG: mark})


def _mirror_closes(door: Door, history: History, parent_id: str) -> None:
    """The figures at each close, worked out where they are not there, and sent at once: a pass that is cut short is of use."""
    there = identities(door, parent_id, CLOSE_KEYS)
    closes = [close for _, close in history.runs if close is not None]
    for close in closes:
        at_ms, step = close_stamp(history, close)
        if any((key, at_ms, step) not in there for key in CLOSE_KEYS):
            door.check_deadline()
            send_points(door, parent_id, unsent(close_points(history, close), there), {}, history)


# ------------------------------------------------------------------------------------------------ artifacts


def _log_table(door: Door, run_id: str, table: Mapping[str, Any]) -> None:
    """One table, written whole when it changed: `log_table` would append the same rows again."""
    text = json.dumps(table)
    artifacts = json.dumps([{"path": _TABLE, "type": "table"}])
    if _is_new(door, run_id, "prunella.incidents_sha256", text.encode()):
        door.client.log_text(run_id, text, _TABLE)
        done = {"prunella.incidents_sha256": sha256(text.encode()).hexdigest(), "mlflow.loggedArtifacts": artifacts}
        set_tags(door, run_id, done)


def _log_report(door: Door, run_id: str, report: Path | None) -> None:
    if report is None:
        return
    content = report.read_bytes()
    if _is_new(door, run_id, "prunella.report_sha256", content):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "report.html"
            copy.write_bytes(content)
            door.client.log_artifact(run_id, str(copy))
        set_tags(door, run_id, {"prunella.report_sha256": sha256(content).hexdigest()})


def _is_new(door: Door, run_id: str, tag: str, content: bytes) -> bool:
    return bool(door.run(run_id).data.tags.get(tag) != sha256(content).hexdigest())
