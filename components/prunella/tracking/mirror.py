"""Mirror an experiment's ledger into MLflow: the sole importer of mlflow.

One parent run an experiment, one child run an attempt, checkpoints as logged models. It reads back what is there and adds what
is missing, with stamps taken from the ledger, so that running it twice adds nothing, running it after a kill completes the
work, and running it after an absence catches up. It trusts the ledger alone; MLflow is never read for truth. It never stops
training: whatever goes wrong over there is one `TrackingUnavailable`, within a bound of time.

The mirror of an experiment has one writer at a time (its `close_segment`, or a person's command): two at once could each
create a run. A parent is found again by the digest of the experiment's opening record, wherever its root lies.
"""

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from prunella.errors import TrackingUnavailable
from prunella.ledger import Ledger
from prunella.records import DataPrepRecord
from prunella.tracking import description
from prunella.tracking.history import Attempt, Checkpoint, History, read_history
from prunella.tracking.series import Point, attempt_points, experiment_points
from prunella.tracking.summary import state

logger = logging.getLogger(__name__)

#: Batch limits of MLflow's API. Source: MLflow 3.17 `utils/validation.py`, 2026-11.
_METRICS_A_BATCH = 1000
_PARAMS_A_BATCH = 100
#: One HTTP request may take this long, and is tried once more. Source: own choice 2026-11, a healthy server needs far less.
_REQUEST_TIMEOUT_S = 5
_REQUEST_RETRIES = 1

_EXPERIMENT_TAG = "prunella.experiment_sha256"
_ATTEMPT_TAG = "prunella.attempt"
_CHECKPOINT_TAG = "prunella.checkpoint"
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
    with _quick_requests(), _one_error(uri):
        writer = _Writer(uri=uri, experiment_name=experiment_name, deadline_s=time.monotonic() + timeout_s)
        return writer.mirror(history, report, known_run_id=known_run_id, join_run_id=join_run_id)


@contextmanager
def _quick_requests() -> Iterator[None]:
    """MLflow reads its bounds from the environment at each request; its defaults wait for minutes."""
    bounds = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_REQUEST_TIMEOUT_S),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(_REQUEST_RETRIES),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    before = {key: os.environ.get(key) for key in bounds}
    os.environ.update(bounds)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


@contextmanager
def _one_error(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].replace(uri, without_password(uri))[:300]
        raise TrackingUnavailable(
            f"MLflow at {without_password(uri)} could not be brought up to date ({reason}); training does not need it: "
            "the ledger is whole, and the next close or `prunella publish` catches up"
        ) from error


def without_password(uri: str) -> str:
    """`uri` as it may be shown: whatever stands before the host's @ is left out."""
    return re.sub(r"://[^/@]*@", "://", uri)


class _Writer:
    """One pass over one experiment. Holds the client, and what the passes below share."""

    def __init__(self, *, uri: str, experiment_name: str, deadline_s: float) -> None:
        import mlflow

        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        self._mlflow = mlflow
        self._client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._uri = uri
        self._deadline_s = deadline_s
        self._points_added = 0
        self._experiment_id = self._find_experiment(experiment_name)

    def mirror(
        self, history: History, report: Path | None, *, known_run_id: str | None, join_run_id: str | None
    ) -> MirrorResult:
        """Attempts first, then the parent, then what refers to both."""
        parent_id = self._parent(history, known_run_id, join_run_id)
        children = tuple(self._mirror_attempt(history, parent_id, attempt) for attempt in history.attempts)
        self._log_params(parent_id, description.config_params(history))
        self._log_dataset(parent_id, history)
        models = self._mirror_checkpoints(history, parent_id)
        self._log_points(parent_id, experiment_points(history), models, history)
        self._set_aliases(history, models)
        self._log_table(parent_id, description.incident_table(history))
        self._log_report(parent_id, report)
        self._set_tags(parent_id, description.experiment_tags(history) | {"mlflow.note.content": description.note(history)})
        self._set_status(parent_id, *_parent_status(history))
        logger.info("experiment_mirrored run_id=%s points_added=%s", parent_id, self._points_added)
        return MirrorResult(
            run_id=parent_id,
            experiment_id=self._experiment_id,
            attempt_run_ids=children,
            points_added=self._points_added,
        )

    # -------------------------------------------------------------------------------- runs

    def _find_experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(name, artifact_location=_artifact_location(self._uri)))

    def _find_run(self, tags: Mapping[str, str]) -> str | None:
        """The oldest run with these tags."""
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        runs = self._client.search_runs([self._experiment_id], wanted, max_results=1, order_by=["attributes.start_time ASC"])
        return str(runs[0].info.run_id) if runs else None

    def _parent(self, history: History, known_run_id: str | None, join_run_id: str | None) -> str:
        """The experiment's run, wherever it was opened; a new one where it has none."""
        for run_id in filter(None, (known_run_id, join_run_id)):
            if self._is_parent(run_id, history):
                self._experiment_id = str(self._client.get_run(run_id).info.experiment_id)
                return self._announced(run_id, join_run_id)
        found = self._find_run({_EXPERIMENT_TAG: history.experiment_sha256})
        if found is not None:
            return self._announced(found, join_run_id)
        return self._create_parent(history) if join_run_id is None else self._join(history, join_run_id)

    def _is_parent(self, run_id: str, history: History) -> bool:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

        try:
            tags = self._client.get_run(run_id).data.tags
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                return False  # remembered from another store
            raise
        return bool(tags.get(_EXPERIMENT_TAG) == history.experiment_sha256)

    def _join(self, history: History, run_id: str) -> str:
        """Make the run that was opened for us the experiment's own."""
        self._set_tags(run_id, {_EXPERIMENT_TAG: history.experiment_sha256, "prunella.experiment": history.experiment.name})
        self._experiment_id = str(self._client.get_run(run_id).info.experiment_id)
        return run_id

    def _announced(self, parent_id: str, join_run_id: str | None) -> str:
        """Leave the experiment's address in a run that was opened for it in vain."""
        if join_run_id is not None and join_run_id != parent_id:
            self._set_tags(join_run_id, {"prunella.run_id": parent_id})
        return parent_id

    def _create_parent(self, history: History) -> str:
        record = history.experiment
        tags = {_EXPERIMENT_TAG: history.experiment_sha256, "prunella.experiment": record.name}
        run = self._client.create_run(self._experiment_id, record.opened_ns // 1_000_000, tags, record.name)
        return str(run.info.run_id)

    def _mirror_attempt(self, history: History, parent_id: str, attempt: Attempt) -> str:
        """One child run. A child that already shows all of this is left alone: a catch-up costs what is missing."""
        self._check_deadline()
        name = f"seg-{attempt.opened.segment:04d} attempt-{attempt.opened.attempt:02d}"
        identity = {"mlflow.parentRunId": parent_id, _ATTEMPT_TAG: name}
        run_id = self._find_run(identity)
        if run_id is None:
            started_ms = attempt.opened.opened_ns // 1_000_000
            run_id = str(self._client.create_run(self._experiment_id, started_ms, identity, name).info.run_id)
        points, tags = attempt_points(attempt), description.attempt_tags(history, attempt)
        status, ended_ns = description.attempt_status(history, attempt)
        mark = sha256(repr((points, tags, status)).encode()).hexdigest()
        if self._client.get_run(run_id).data.tags.get(_MIRRORED_TAG) != mark:
            self._log_points(run_id, points, {}, history)
            self._set_tags(run_id, tags)
            self._set_status(run_id, status, ended_ns)
            self._set_tags(run_id, {_MIRRORED_TAG: mark})
        return run_id

    def _set_status(self, run_id: str, status: str, ended_ns: int | None) -> None:
        info = self._client.get_run(run_id).info
        ended_ms = None if ended_ns is None else ended_ns // 1_000_000
        if status == "RUNNING":
            if info.status != status:
                self._client.update_run(run_id, status=status)
        elif (info.status, info.end_time) != (status, ended_ms):
            self._client.set_terminated(run_id, status, ended_ms)

    # -------------------------------------------------------------------------------- values

    def _log_points(self, run_id: str, points: Sequence[Point], models: Mapping[str, str], history: History) -> None:
        """Add the points that the run does not have. A point is there when its key has a value with its stamp and step."""
        from mlflow.entities import Metric

        missing = self._missing(run_id, points)
        dataset = _dataset_identity(history)
        metrics = []
        for point in missing:
            model_id = models.get(point.checkpoint) if point.checkpoint is not None else None
            about = {"model_id": model_id} | dataset if model_id is not None else {}
            metrics.append(Metric(point.key, point.value, point.at_ms, point.step, **about))
        for start in range(0, len(metrics), _METRICS_A_BATCH):
            self._check_deadline()
            self._client.log_batch(run_id, metrics=metrics[start : start + _METRICS_A_BATCH])
        self._points_added += len(metrics)

    def _missing(self, run_id: str, points: Sequence[Point]) -> list[Point]:
        logged = self._client.get_run(run_id).data.metrics
        there: set[tuple[str, int, int]] = set()
        for key in {point.key for point in points} & set(logged):
            self._check_deadline()
            there |= {(key, value.timestamp, value.step) for value in self._client.get_metric_history(run_id, key)}
        missing = {(point.key, point.at_ms, point.step): point for point in points}
        return [point for identity, point in missing.items() if identity not in there]

    def _log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        logged = self._client.get_run(run_id).data.params
        missing = [Param(key, value) for key, value in params.items() if key not in logged]
        for start in range(0, len(missing), _PARAMS_A_BATCH):
            self._client.log_batch(run_id, params=missing[start : start + _PARAMS_A_BATCH])

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        logged = self._client.get_run(run_id).data.tags
        changed = [RunTag(key, value) for key, value in tags.items() if logged.get(key) != value]
        if changed:
            self._client.log_batch(run_id, tags=changed)

    def _log_dataset(self, run_id: str, history: History) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        record, identity = history.dataset, _dataset_identity(history)
        if not isinstance(record, DataPrepRecord) or self._client.get_run(run_id).inputs.dataset_inputs:
            return
        profile = {"train_tokens": record.train_tokens, "heldout_tokens": record.heldout_tokens, "documents": record.documents}
        dataset = Dataset(
            name=identity["dataset_name"],
            digest=identity["dataset_digest"],
            source_type="prunella",
            source=json.dumps({"key": f"datasets/{record.fingerprint}"}),
            profile=json.dumps(profile),
        )
        self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    # -------------------------------------------------------------------------------- checkpoints

    def _mirror_checkpoints(self, history: History, parent_id: str) -> dict[str, str]:
        """Every verified checkpoint as an external model; returns model ids by checkpoint name."""
        models = self._find_models(parent_id)
        for checkpoint in history.checkpoints:
            name = checkpoint.manifest.name
            if checkpoint.is_verified and name not in models:
                self._check_deadline()
                models[name] = self._create_model(history, parent_id, checkpoint)
            elif checkpoint.revoked is not None and name in models:
                self._client.set_logged_model_tags(models[name], {"prunella.revoked": checkpoint.revoked.reason})
        return models

    def _find_models(self, parent_id: str) -> dict[str, str]:
        """Finished models of the experiment; one that a kill left half made is removed, to be made again."""
        models: dict[str, str] = {}
        token: str | None = None
        while True:
            page = self._client.search_logged_models([self._experiment_id], f"source_run_id = '{parent_id}'", page_token=token)
            for model in page:
                if str(model.status) != "READY" or model.tags.get(_CHECKPOINT_TAG) is None:
                    self._client.delete_logged_model(model.model_id)
                else:
                    models[model.tags[_CHECKPOINT_TAG]] = str(model.model_id)
            token = page.token
            if not token:
                return models

    def _create_model(self, history: History, parent_id: str, checkpoint: Checkpoint) -> str:
        manifest = checkpoint.manifest
        model = self._mlflow.create_external_model(
            name=f"{history.experiment.name}-step-{manifest.step:06d}",
            source_run_id=parent_id,
            tags={_CHECKPOINT_TAG: manifest.name},
            params=description.checkpoint_params(checkpoint),
            model_type="checkpoint",
            experiment_id=self._experiment_id,
        )
        return str(model.model_id)

    def _set_aliases(self, history: History, models: Mapping[str, str]) -> None:
        """`last-verified` and `best` in the registry, under a name that no other root's experiment shares."""
        chosen = {
            "last-verified": description.last_verified_checkpoint(history),
            "best": description.best_checkpoint(history),
        }
        name = f"{history.experiment.name}-{history.experiment_sha256[:8]}"
        wanted = {alias: checkpoint for alias, checkpoint in chosen.items() if checkpoint is not None}
        if not wanted:
            return
        if not self._client.search_registered_models(f"name = '{name}'"):
            self._client.create_registered_model(name, {"prunella.experiment": history.experiment.name})
        aliases = self._client.get_registered_model(name).aliases
        versions = {v.tags.get(_CHECKPOINT_TAG): str(v.version) for v in self._client.search_model_versions(f"name='{name}'")}
        for alias, checkpoint in wanted.items():
            if checkpoint not in versions:
                versions[checkpoint] = self._create_version(name, checkpoint, models[checkpoint])
            if str(aliases.get(alias)) != versions[checkpoint]:
                self._client.set_registered_model_alias(name, alias, versions[checkpoint])

    def _create_version(self, name: str, checkpoint: str, model_id: str) -> str:
        tags = {_CHECKPOINT_TAG: checkpoint}
        return str(self._client.create_model_version(name, f"models:/{model_id}", tags=tags, model_id=model_id).version)

    # -------------------------------------------------------------------------------- artifacts

    def _log_table(self, run_id: str, table: Mapping[str, Any]) -> None:
        """One table, written whole when it changed: `log_table` would append the same rows again."""
        text = json.dumps(table)
        artifacts = json.dumps([{"path": _TABLE, "type": "table"}])
        if self._is_new(run_id, "prunella.incidents_sha256", text.encode()):
            self._client.log_text(run_id, text, _TABLE)
            done = {"prunella.incidents_sha256": sha256(text.encode()).hexdigest(), "mlflow.loggedArtifacts": artifacts}
            self._set_tags(run_id, done)

    def _log_report(self, run_id: str, report: Path | None) -> None:
        if report is None:
            return
        content = report.read_bytes()
        if self._is_new(run_id, "prunella.report_sha256", content):
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / "report.html"
                copy.write_bytes(content)
                self._client.log_artifact(run_id, str(copy))
            self._set_tags(run_id, {"prunella.report_sha256": sha256(content).hexdigest()})

    def _is_new(self, run_id: str, tag: str, content: bytes) -> bool:
        return bool(self._client.get_run(run_id).data.tags.get(tag) != sha256(content).hexdigest())

    def _check_deadline(self) -> None:
        if time.monotonic() > self._deadline_s:
            raise TrackingUnavailable(
                f"MLflow at {without_password(self._uri)} is too slow: the time for mirroring is used up; "
                "the next close goes on from here"
            )


def _parent_status(history: History) -> tuple[str, int | None]:
    status = description.STATUS[state(history)]
    closes = [close.closed_ns for _, close in history.runs if close is not None]
    return status, (None if status == "RUNNING" else max(closes))


def _dataset_identity(history: History) -> dict[str, str]:
    """Name and digest of the data set; MLflow takes digests of up to 36 characters."""
    record = history.dataset
    if not isinstance(record, DataPrepRecord):
        return {}
    return {"dataset_name": f"dataset-{record.fingerprint[:12]}", "dataset_digest": record.fingerprint[:36]}


def _artifact_location(uri: str) -> str | None:
    """Beside a SQLite store, instead of the current folder; a server decides for itself."""
    scheme, separator, path = uri.partition(":///")
    return (Path(path).absolute().parent / "mlartifacts").as_uri() if separator and scheme == "sqlite" else None
