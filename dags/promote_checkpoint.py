"""Promote a checkpoint by hand, although its evaluation says that it fell behind.

## What it does
Marks the checkpoint with which an accepted segment ended as promoted, with who asked for it and why. The segments after it
are then compared with it, no longer with the one promoted before, and retention keeps it. Nothing is trained, and nothing is
started: that is the business of `pretrain_segment`.

## What pages a person
Nothing. Where there is nothing to promote the run fails, and its log says what was expected.

## How to use it
*Trigger* with the form, after a segment closed with the incident `quality_regression` and its report convinced you; then the
next segment may be triggered. In a terminal: `prunella checkpoint promote --root ROOT --reason "why"`.
"""

import os

from airflow.sdk import DAG, Param, task

from prunella.orchestration.masking import mask_secrets

with DAG(
    dag_id="promote_checkpoint",
    description="Promotes a checkpoint that a person accepts although it fell behind",
    schedule=None,
    catchup=False,
    is_paused_upon_creation=False,
    params={
        "experiment": Param(
            "experiment", type="string", pattern="^[a-z0-9][a-z0-9-]{0,62}$", description="Name of the campaign."
        ),
        "root": Param(os.environ.get("PRUNELLA_ROOT", "var/prunella"), type="string", description="Where the ledger lies."),
        "step": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            description="Optimizer step with which an accepted segment ended; the last such when empty.",
        ),
        "reason": Param("", type="string", description="Why it is accepted all the same; kept beside the checkpoint."),
    },
    doc_md=__doc__,
    tags=["prunella"],
    default_args={"owner": "prunella", "pre_execute": mask_secrets},
) as dag:

    @task
    def promote(params=None, dag_run=None):
        """The person's word, on record."""
        from prunella.orchestration.promoting import promote_by_hand
        from prunella.orchestration.submit import find_experiment

        ledger = find_experiment(params["root"], params["experiment"])
        return promote_by_hand(ledger, step=params["step"], reason=params["reason"], who=dag_run.triggering_user_name)

    promote()
