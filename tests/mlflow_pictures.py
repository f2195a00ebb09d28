"""All that MLflow shows of an experiment, so that two pictures of it can be compared."""

from typing import Any

import mlflow

from prunella.tracking.mirror import MirrorResult


def history_of(uri: str, run_id: str) -> dict[str, list[tuple[int, int, str]]]:
    """Every value of every series of a run, by step: databases differ in the order in which they return them."""
    client = mlflow.MlflowClient(uri)
    keys = client.get_run(run_id).data.metrics
    return {
        key: sorted((value.step, value.timestamp, str(value.value)) for value in client.get_metric_history(run_id, key))
        for key in keys
    }


def snapshot(uri: str, result: MirrorResult) -> list[Any]:
    """All that MLflow shows of an experiment, without the ids it made up."""
    client = mlflow.MlflowClient(uri)
    shown = []
    for run_id in (result.run_id, *result.attempt_run_ids):
        run = client.get_run(run_id)
        tags = {key: value for key, value in run.data.tags.items() if "sha256" not in key and key != "mlflow.parentRunId"}
        shown.append((run.info.status, run.info.end_time, tags, run.data.params, history_of(uri, run_id)))
    models = client.search_logged_models([result.experiment_id], f"source_run_id = '{result.run_id}'")
    shown.append(
        sorted((model.name, str(model.status), model.params["checkpoint"], len(model.metrics or ())) for model in models)
    )
    return shown
