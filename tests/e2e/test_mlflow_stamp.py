"""Airflow's identity reaches MLflow: from the task, through the process apart that publishes, onto every run."""

import sqlite3
from contextlib import closing

from e2e.campaign import SEGMENTS, Campaign


def test_every_run_in_mlflow_says_which_airflow_task_made_it(unbroken: Campaign) -> None:
    with closing(sqlite3.connect(f"file:{unbroken.root}/published/mlflow.db?mode=ro", uri=True)) as store:
        runs = [run for (run,) in store.execute("select run_uuid from runs")]
        tags = store.execute("select run_uuid, key, value from tags where key like 'airflow.%'").fetchall()

    stamps = {run: {key: value for of, key, value in tags if of == run} for run in runs}
    assert len(runs) == 1 + SEGMENTS, "one of the experiment, one an attempt"
    for stamp in stamps.values():
        assert stamp.pop("airflow.dag_run_id").startswith("manual__"), "`prunella run` leaves the name to Airflow"
        assert stamp == {"airflow.dag_id": "pretrain_segment", "airflow.task_id": "close_segment", "airflow.try_number": "1"}
