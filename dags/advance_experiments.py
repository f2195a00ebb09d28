"""Start the next segment of every experiment that is due, and take up those that died. Scheduler and reconciler at once.

## What it does
Every minute: for each experiment under the root that is `continuous` or `cron:EXPR` (recorded in the experiment) and due,
or whose last DAG run died without a close, triggers `pretrain_segment` under its deterministic id
`<experiment>__seg-0003__r0` (`r1` after a failure, `r0-1` where a run ended before it could take the segment up, five at
most). Whoever triggers the same id second finds it there: nothing runs twice.

## What pages a person
Nothing here. An experiment that was stopped, waits for a person, or has spent its budgets is left alone.

## How to stop it
Pause this DAG, or `prunella stop` an experiment.
"""

import os
from datetime import timedelta

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, Param, task

from prunella.orchestration.masking import mask_secrets

with DAG(
    dag_id="advance_experiments",
    description="Triggers the next segment of each experiment that is due",
    schedule=timedelta(minutes=1),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    params={
        "root": Param(os.environ.get("PRUNELLA_ROOT", "var/prunella"), type="string", description="Where the ledger lies.")
    },
    doc_md=__doc__,
    tags=["prunella"],
    # The first tick may come before the API server listens; looking again and triggering the same id again are harmless.
    default_args={"owner": "prunella", "pre_execute": mask_secrets, "retries": 2, "retry_delay": timedelta(seconds=5)},
) as dag:

    @task
    def find_due(params=None, ti=None):
        """Experiments that are due, as arguments of a trigger each."""
        from prunella.orchestration.advance import RunState, due_runs

        def state_of(run_id):
            for state, words in ((RunState.IN_HAND, ["queued", "running"]), (RunState.OVER, ["success", "failed"])):
                if ti.get_dr_count("pretrain_segment", run_ids=[run_id], states=words):
                    return state
            return None

        return due_runs(params["root"], state_of=state_of)

    TriggerDagRunOperator.partial(
        task_id="trigger",
        trigger_dag_id="pretrain_segment",
        logical_date=None,
        skip_when_already_exists=True,
        map_index_template="{{ task.trigger_run_id }}",
    ).expand_kwargs(find_due())
