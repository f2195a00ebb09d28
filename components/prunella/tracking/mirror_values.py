"""What a run in MLflow holds: points, params, tags, status, data set. Each call adds what is missing, and nothing twice."""

import json
from collections.abc import Iterable, Mapping, Sequence, Set

from prunella.records import DataPrepRecord
from prunella.tracking.history import History
from prunella.tracking.mlflow_door import Door
from prunella.tracking.series import Point

#: Batch limits of MLflow's API. Source: MLflow 3.17 `utils/validation.py`, 2026-11.
_METRICS_A_BATCH = 1000
_PARAMS_A_BATCH = 100
#: What tells points of one run apart: key, stamp in milliseconds, step.
Identity = tuple[str, int, int]


def log_points(door: Door, run_id: str, points: Sequence[Point], models: Mapping[str, str], history: History) -> None:
    """Add the points that the run does not have. A point is there when its key has a value with its stamp and step."""
    there = identities(door, run_id, {point.key for point in points})
    send_points(door, run_id, unsent(points, there), models, history)


def unsent(points: Iterable[Point], there: Set[Identity]) -> list[Point]:
    """The points that are not there, in their order."""
    by_identity = {(point.key, point.at_ms, point.step): point for point in points}
    return [point for identity, point in by_identity.items() if identity not in there]


def send_points(door: Door, run_id: str, points: Sequence[Point], models: Mapping[str, str], history: History) -> None:
    """Add these points. The clock is looked at behind each batch: what a pass has worked out is not thrown away."""
    from mlflow.entities import Metric

    dataset = _dataset_identity(history)
    metrics = []
    for point in points:
        model_id = models.get(point.checkpoint) if point.checkpoint is not None else None
        about = {"model_id": model_id} | dataset if model_id is not None else {}
        metrics.append(Metric(point.key, point.value, point.at_ms, point.step, **about))
    for start in range(0, len(metrics), _METRICS_A_BATCH):
        batch = metrics[start : start + _METRICS_A_BATCH]
        door.client.log_batch(run_id, metrics=batch)
        door.points_added += len(batch)
        door.check_deadline()


def identities(door: Door, run_id: str, keys: Iterable[str]) -> set[Identity]:
    """Every point that the run has of these keys."""
    logged = door.run(run_id).data.metrics
    there: set[Identity] = set()
    for key in set(keys) & set(logged):
        door.check_deadline()
        there |= {(key, value.timestamp, value.step) for value in door.client.get_metric_history(run_id, key)}
    return there


def log_params(door: Door, run_id: str, params: Mapping[str, str]) -> None:
    """Add the params that the run does not have: they never change."""
    from mlflow.entities import Param

    logged = door.run(run_id).data.params
    missing = [Param(key, value) for key, value in params.items() if key not in logged]
    for start in range(0, len(missing), _PARAMS_A_BATCH):
        door.client.log_batch(run_id, params=missing[start : start + _PARAMS_A_BATCH])


def set_tags(door: Door, run_id: str, tags: Mapping[str, str]) -> None:
    """Set the tags that are absent or say something else."""
    from mlflow.entities import RunTag

    logged = door.run(run_id).data.tags
    changed = [RunTag(key, value) for key, value in tags.items() if logged.get(key) != value]
    if changed:
        door.client.log_batch(run_id, tags=changed)
        logged.update(tags)


def set_status(door: Door, run_id: str, status: str, ended_ns: int | None) -> None:
    """How the run ended and when, or that it is running."""
    info = door.run(run_id).info
    ended_ms = None if ended_ns is None else ended_ns // 1_000_000
    if status == "RUNNING":
        if info.status != status:
            door.client.update_run(run_id, status=status)
    elif (info.status, info.end_time) != (status, ended_ms):
        door.client.set_terminated(run_id, status, ended_ms)


def log_dataset(door: Door, run_id: str, history: History) -> None:
    """The data set as the run's input, once."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    record, identity = history.dataset, _dataset_identity(history)
    inputs = door.run(run_id).inputs
    if not isinstance(record, DataPrepRecord) or (inputs is not None and inputs.dataset_inputs):
        return
    profile = {"train_tokens": record.train_tokens, "heldout_tokens": record.heldout_tokens, "documents": record.documents}
    dataset = Dataset(
        name=identity["dataset_name"],
        digest=identity["dataset_digest"],
        source_type="prunella",
        source=json.dumps({"key": f"datasets/{record.fingerprint}"}),
        profile=json.dumps(profile),
    )
    door.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _dataset_identity(history: History) -> dict[str, str]:
    """Name and digest of the data set; MLflow takes digests of up to 36 characters."""
    record = history.dataset
    if not isinstance(record, DataPrepRecord):
        return {}
    return {"dataset_name": f"dataset-{record.fingerprint[:12]}", "dataset_digest": record.fingerprint[:36]}
