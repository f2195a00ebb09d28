"""Which Airflow task made a run in MLflow: a plugin of MLflow's group `mlflow.run_context_provider`.

Airflow tells a task who it is through the environment (`AIRFLOW_CTX_*`), and what the task starts inherits it; so the mirror,
a process apart, still knows. MLflow asks its plugins in `mlflow.start_run` only: a run made there, in any task, is stamped by
itself, and the mirror, which makes runs through the client, asks for the stamp. A stamp says who made the run in MLflow, once.
Which DAG run trained an attempt is another question, and answered from the ledger (`prunella.airflow_dag_run`).

It does not import mlflow: MLflow loads its plugins while it is itself being imported, and would find this module half done
where this module had begun that import.
"""

import os

#: Tag -> the variable that Airflow's task runner sets. Source: Airflow 3.3.2 `airflow/sdk/execution_time/context.py`, 2026-11.
STAMPS = {
    "airflow.dag_id": "AIRFLOW_CTX_DAG_ID",
    "airflow.dag_run_id": "AIRFLOW_CTX_DAG_RUN_ID",
    "airflow.task_id": "AIRFLOW_CTX_TASK_ID",
    "airflow.try_number": "AIRFLOW_CTX_TRY_NUMBER",
}


class AirflowRunContext:
    """What MLflow's `RunContextProvider` asks for, without being one: are we in your context, and which tags has it?"""

    def in_context(self) -> bool:
        """Whether an Airflow task started this process, however far up."""
        return bool(os.environ.get("AIRFLOW_CTX_TASK_ID"))

    def tags(self) -> dict[str, str]:
        """Airflow's dag, run, task and try, as far as they are told."""
        return {tag: os.environ[variable] for tag, variable in STAMPS.items() if os.environ.get(variable)}


def stamp() -> dict[str, str]:
    """The tags of the task that we run in; none outside of Airflow."""
    context = AirflowRunContext()
    return context.tags() if context.in_context() else {}
