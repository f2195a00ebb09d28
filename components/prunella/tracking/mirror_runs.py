"""Which run in MLflow is whose: finds the experiment's run and those of its attempts by their tags, or makes them."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunella.tracking.airflow_context import stamp
from prunella.tracking.history import Attempt, History
from prunella.tracking.mirror_values import set_tags
from prunella.tracking.mlflow_door import Door, only_once, without_password

_EXPERIMENT_TAG = "prunella.experiment_sha256"
_NAME_TAG = "prunella.experiment"
_ATTEMPT_TAG = "prunella.attempt"

logger = logging.getLogger(__name__)


def mlflow_experiment(door: Door, name: str) -> str:
    """The id of the MLflow experiment that holds all of ours; made if absent."""
    from mlflow.exceptions import MlflowException

    found = door.client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(door.client.create_experiment(name, artifact_location=_artifact_location(door.uri)))
    except MlflowException:
        found = door.client.get_experiment_by_name(name)  # another mirror made it in between
        if found is None:
            raise
        return str(found.experiment_id)


def _artifact_location(uri: str) -> str | None:
    """Beside a SQLite store, instead of the current folder; a server decides for itself."""
    scheme, separator, path = uri.partition(":///")
    return (Path(path).absolute().parent / "mlartifacts").as_uri() if separator and scheme == "sqlite" else None


# ------------------------------------------------------------------------------------------------ the experiment's run


def parent_run(door: Door, history: History, *, known_run_id: str | None, join_run_id: str | None) -> str:
    """The experiment's run, wherever it was opened; a new one where it has none.

    Args:
        known_run_id: what an earlier mirror remembered.
        join_run_id: a run that was opened for us elsewhere (MLFLOW_RUN_ID). One that this server does not have, or that is
            another experiment's, is left alone.
    """
    if join_run_id is not None and not _is_ours_to_join(door, join_run_id, history):
        join_run_id = None
    for run_id in filter(None, (known_run_id, join_run_id)):
        if _is_parent(door, run_id, history):
            door.experiment_id = str(door.run(run_id).info.experiment_id)
            return _announced(door, run_id, join_run_id)
    found = _find_run(door, {_EXPERIMENT_TAG: history.experiment_sha256})
    if found is not None:
        return _announced(door, found, join_run_id)
    return _create_parent(door, history) if join_run_id is None else _join(door, history, join_run_id)


def _is_parent(door: Door, run_id: str, history: History) -> bool:
    return (_tags(door, run_id) or {}).get(_EXPERIMENT_TAG) == history.experiment_sha256


def _tags(door: Door, run_id: str) -> Mapping[str, str] | None:
    """The tags of a run; None where it is one of another store."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

    try:
        tags: Mapping[str, str] = door.run(run_id).data.tags
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return None
        raise
    return tags


def _is_ours_to_join(door: Door, run_id: str, history: History) -> bool:
    tags = _tags(door, run_id)
    owner = tags.get(_EXPERIMENT_TAG) if tags is not None else None
    if tags is not None and owner in (None, history.experiment_sha256):
        return True
    owned = f"it is that of experiment {(tags or {}).get(_NAME_TAG)!r}"
    why = owned if tags is not None else f"{without_password(door.uri)} has no such run"
    logger.warning("run_not_joined MLFLOW_RUN_ID=%s reason=%s; the experiment keeps a run of its own", run_id, why)
    return False


def _identity(history: History) -> dict[str, str]:
    return {_EXPERIMENT_TAG: history.experiment_sha256, _NAME_TAG: history.experiment.name}


def _join(door: Door, history: History, run_id: str) -> str:
    """Make the run that was opened for us the experiment's own."""
    set_tags(door, run_id, _identity(history))
    door.experiment_id = str(door.run(run_id).info.experiment_id)
    return run_id


def _announced(door: Door, parent_id: str, join_run_id: str | None) -> str:
    """Leave the experiment's address in a run that was opened for it in vain."""
    if join_run_id is not None and join_run_id != parent_id:
        set_tags(door, join_run_id, {"prunella.run_id": parent_id})
    return parent_id


def _create_parent(door: Door, history: History) -> str:
    record = history.experiment
    return _create_run(door, record.opened_ns, _identity(history), record.name)


# ------------------------------------------------------------------------------------------------ runs of attempts


def attempt_runs(door: Door, parent_id: str) -> dict[str, str]:
    """Child runs that are there already, by the name of their attempt: one request however many there are."""
    found = _find_runs(door, {"mlflow.parentRunId": parent_id})
    return {run.data.tags.get(_ATTEMPT_TAG, ""): door.saw(run) for run in reversed(found)}


def attempt_run(door: Door, parent_id: str, attempt: Attempt, known: Mapping[str, str]) -> str:
    """The child run of an attempt; made if it is not among those known."""
    name = f"seg-{attempt.opened.segment:04d} attempt-{attempt.opened.attempt:02d}"
    identity = {"mlflow.parentRunId": parent_id, _ATTEMPT_TAG: name}
    return known.get(name) or _create_run(door, attempt.opened.opened_ns, identity, name)


def _find_run(door: Door, tags: Mapping[str, str]) -> str | None:
    """The oldest run with these tags."""
    return next((door.saw(run) for run in _find_runs(door, tags)), None)


def _find_runs(door: Door, tags: Mapping[str, str]) -> list[Any]:
    """All runs with these tags, oldest first."""
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    runs: list[Any] = []
    token: str | None = None
    while True:
        page = door.client.search_runs([door.experiment_id], wanted, order_by=["attributes.start_time ASC"], page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def _create_run(door: Door, started_ns: int, tags: Mapping[str, str], name: str) -> str:
    with only_once():
        run = door.client.create_run(door.experiment_id, started_ns // 1_000_000, stamp() | dict(tags), name)
    return door.saw(run)
