"""Checkpoints in MLflow: every verified one as a logged model without files, and the two that the registry has a name for."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from prunella.tracking import description
from prunella.tracking.history import Checkpoint, History
from prunella.tracking.mlflow_door import Door, only_once

logger = logging.getLogger(__name__)

_CHECKPOINT_TAG = "prunella.checkpoint"


def mirror_checkpoints(door: Door, history: History, parent_id: str) -> dict[str, str]:
    """Every verified checkpoint as an external model, with tags that say what became of it; returns model ids by name."""
    models = _find_models(door, parent_id)
    for checkpoint in history.checkpoints:
        name, tags = checkpoint.manifest.name, description.checkpoint_tags(checkpoint)
        if name in models:
            _set_tags(door, models[name], tags)
        elif checkpoint.is_verified:
            door.check_deadline()
            models[name] = _Model(id=_create_model(door, history, parent_id, checkpoint, tags), tags=tags)
    return {name: model.id for name, model in models.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Model:
    """A logged model as this pass found it."""

    id: str
    tags: Mapping[str, str]


def _set_tags(door: Door, model: _Model, tags: Mapping[str, str]) -> None:
    """Set the tags that are absent or say something else: most passes ask for nothing here."""
    changed = {key: value for key, value in tags.items() if model.tags.get(key) != value}
    if changed:
        door.check_deadline()
        door.client.set_logged_model_tags(model.id, changed)


def _find_models(door: Door, parent_id: str) -> dict[str, _Model]:
    """Finished models of the experiment, by checkpoint; one that a kill left half made is removed, to be made again."""
    models: dict[str, _Model] = {}
    token: str | None = None
    while True:
        page = door.client.search_logged_models([door.experiment_id], f"source_run_id = '{parent_id}'", page_token=token)
        for model in page:
            if str(model.status) != "READY" or model.tags.get(_CHECKPOINT_TAG) is None:
                _remove(door, model.model_id)
            else:
                models[model.tags[_CHECKPOINT_TAG]] = _Model(id=str(model.model_id), tags=dict(model.tags))
        token = page.token
        if not token:
            return models


def _remove(door: Door, model_id: str) -> None:
    """A user with MLflow's permission EDIT may not delete; the model stays then, in nobody's way."""
    from mlflow.exceptions import MlflowException

    try:
        door.client.delete_logged_model(model_id)
    except MlflowException as error:
        if error.error_code != "PERMISSION_DENIED":
            raise
        logger.warning("model_left_half_made model_id=%s", model_id)


def _create_model(door: Door, history: History, parent_id: str, checkpoint: Checkpoint, tags: Mapping[str, str]) -> str:
    import mlflow

    manifest = checkpoint.manifest
    with only_once():
        model = mlflow.create_external_model(
            name=f"{history.experiment.name}-step-{manifest.step:06d}",
            source_run_id=parent_id,
            tags={_CHECKPOINT_TAG: manifest.name, **tags},
            params=description.checkpoint_params(checkpoint),
            model_type="checkpoint",
            experiment_id=door.experiment_id,
        )
    return str(model.model_id)


def set_aliases(door: Door, history: History, models: Mapping[str, str]) -> None:
    """`last-verified` and `best` in the registry, under a name that no other root's experiment shares."""
    chosen = {
        "last-verified": description.last_verified_checkpoint(history),
        "best": description.best_checkpoint(history),
    }
    name = f"{history.experiment.name}-{history.experiment_sha256[:8]}"
    wanted = {alias: checkpoint for alias, checkpoint in chosen.items() if checkpoint is not None}
    if not wanted:
        return
    if not door.client.search_registered_models(f"name = '{name}'"):
        door.client.create_registered_model(name, {"prunella.experiment": history.experiment.name})
    aliases = door.client.get_registered_model(name).aliases
    versions = {v.tags.get(_CHECKPOINT_TAG): str(v.version) for v in door.client.search_model_versions(f"name='{name}'")}
    for alias, checkpoint in wanted.items():
        if checkpoint not in versions:
            versions[checkpoint] = _create_version(door, name, checkpoint, models[checkpoint])
        if str(aliases.get(alias)) != versions[checkpoint]:
            door.client.set_registered_model_alias(name, alias, versions[checkpoint])


def _create_version(door: Door, name: str, checkpoint: str, model_id: str) -> str:
    tags = {_CHECKPOINT_TAG: checkpoint}
    with only_once():
        return str(door.client.create_model_version(name, f"models:/{model_id}", tags=tags, model_id=model_id).version)
