"""Train one segment of an experiment, and heal what breaks on the way.

## What it does
Prepares the data (once an experiment), then climbs a ladder of attempts: gate every node, gate the links between them,
train, validate the checkpoint, judge. The verdict takes one branch: **accept** goes on to evaluation and promotion; a
recovery (`retry_same_nodes`, `replace_node`, `roll_back`, `roll_back_and_skip`) opens the next attempt from the newest
checkpoint that passes; **ask** waits for a person on the *Required actions* page; **stop** closes. `close_segment` always
runs, writes the outcome to the ledger, mirrors everything to MLflow, and is red when the segment failed. It is skipped
where another run of the segment took over: that one closes it, and nobody is paged.

## What pages a person
The DAG run fails (`close_segment` is red): its log has the cause and the next step. `ask` waits, an hour at most, then
stops. After a `quality_regression` the segment is closed and the experiment waits: read the report, promote the checkpoint
with `promote_checkpoint` if you accept it, and trigger the next segment. Each of the three is an event in the log, and with
`PRUNELLA_ALERT_WEBHOOK` set a letter to that address; so is a run that has not ended `PRUNELLA_SEGMENT_DEADLINE_S` after it
was queued. `PRUNELLA_ALERT_TEMPLATE` decides what the letter says.

## How to run it
*Trigger* with the form; the fields left empty keep what the experiment was opened with. Trigger again with only
`experiment` and `root` to run the next segment, or to take up one that failed: nothing verified is ever trained twice.
Clearing a single task is safe, but a new run is what you want: attempts are opened by runs.

## Why a task stays scheduled
Its nodes are in use: with `PRUNELLA_POOL_SLOTS` set, work on nodes waits for slots of the pool `prunella_nodes`, which must
exist and have at least that many. *Admin, Pools* shows who holds them.

## Where to look
The verdict's log names the row of the policy that decided. The links on `close_segment` open MLflow and the report.
`prunella status --root ROOT --experiment NAME` says the same in a terminal.
"""

import os
from datetime import timedelta

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.hitl import HITLBranchOperator
from airflow.sdk import DAG, Label, Param, ParamsDict, TaskGroup, TriggerRule

from prunella.orchestration import airflow_operators as steps
from prunella.orchestration import graph
from prunella.orchestration.graph import Step
from prunella.orchestration.leaving import leave
from prunella.orchestration.masking import mask_secrets
from prunella.orchestration.notifier import ASKED, Alert
from prunella.orchestration.scheduling import in_queue, on_all_nodes, on_one_node, segment_deadline
from prunella.records import Action

EXPERIMENT = "1. Experiment"
WHAT = "2. What to train (leave empty to keep what the experiment was opened with)"
HOW = "3. Advanced"

PARAMS = {
    "experiment": Param(
        "experiment",
        type="string",
        pattern="^[a-z0-9][a-z0-9-]{0,62}$",
        section=EXPERIMENT,
        description="Name of the campaign: lower-case letters, digits and '-'. An existing name runs its next segment.",
    ),
    "root": Param(
        os.environ.get("PRUNELLA_ROOT", "var/prunella"),
        type="string",
        section=EXPERIMENT,
        description="Where the ledger lies: a folder that every process of the run can reach, or s3://BUCKET/PREFIX.",
    ),
    "recipe": Param(
        None,
        type=["null", "string"],
        section=WHAT,
        examples=["tiny_moe", "tiny_dense", "sigma_moe_tiny", "sigma_moe_200b"],
        description="Named configuration to start from; tiny_moe when empty.",
    ),
    "config_file": Param(None, type=["null", "string"], section=WHAT, description="An experiment.toml laid over the recipe."),
    "segments": Param(None, type=["null", "integer"], minimum=1, section=WHAT, description="Segments in all."),
    "steps_per_segment": Param(
        None, type=["null", "integer"], minimum=1, section=WHAT, description="Optimizer steps a segment."
    ),
    "nodes": Param(None, type=["null", "integer"], minimum=1, section=WHAT, description="Nodes that train together."),
    "seed": Param(None, type=["null", "integer"], section=WHAT, description="Seed of initialisation and data order."),
    "schedule": Param(
        None,
        type=["null", "string"],
        pattern="^(manual|continuous|cron:.+)$",
        section=WHAT,
        description="When the next segment starts: manual, continuous, or cron:EXPR (for example cron:*/30 * * * *).",
    ),
    "fleet": Param(None, type=["null", "string"], section=HOW, description="Fleet file (YAML) that lists nodes and spares."),
    "faults": Param([], type="array", section=HOW, description="Faults to inject, one a line; `prunella fault list` has them."),
    "set": Param([], type="array", section=HOW, description="Single settings, one a line: optim.learning_rate=1e-3"),
    "unattended": Param(False, type="boolean", section=HOW, description="Nobody is there to ask: take policy.unattended."),
    "run_id": Param(None, type=["null", "string"], section=HOW, description="Set by Prunella's own triggers."),
    "continues": Param(
        False,
        type="boolean",
        section=HOW,
        description="Set by Prunella's own triggers: the experiment must be there, and is never opened anew.",
    ),
}

with DAG(
    dag_id="pretrain_segment",
    description="One segment of a pretraining experiment: gate, train, validate, heal, evaluate",
    schedule=None,
    catchup=False,
    is_paused_upon_creation=False,  # a run of a paused DAG waits for ever, and nobody is told
    doc_md=__doc__,
    tags=["prunella"],
    max_active_runs=16,
    on_failure_callback=Alert(),
    deadline=segment_deadline(),
    render_template_as_native_obj=True,
    default_args={
        "retries": 5,
        "retry_delay": timedelta(seconds=2),
        "owner": "prunella",
        "pre_execute": mask_secrets,
        "on_retry_callback": leave,
        "on_failure_callback": leave,
        **in_queue(),
    },
) as dag:
    prepare_data = steps.PrepareData(task_id=Step.PREPARE_DATA)
    open_segment = steps.OpenSegment(task_id=Step.OPEN_SEGMENT)
    evaluate = steps.Evaluate(task_id=Step.EVALUATE, trigger_rule=TriggerRule.ONE_SUCCESS)
    promote = steps.Promote(task_id=Step.PROMOTE)
    close_segment = steps.CloseSegment(task_id=Step.CLOSE_SEGMENT, trigger_rule=TriggerRule.ALL_DONE)
    continue_experiment = steps.ContinueExperiment(
        task_id=Step.CONTINUE_EXPERIMENT,
        trigger_dag_id="pretrain_segment",
        logical_date=None,
        skip_when_already_exists=True,
    )

    prepare_data >> open_segment
    evaluate >> promote >> close_segment >> continue_experiment

    openings = []
    branches = []
    for rung in range(graph.RUNGS):
        with TaskGroup(graph.rung_name(rung), tooltip=f"Attempt {rung} of this run: gate, train, validate, judge"):
            open_attempt = steps.OpenAttempt(
                task_id=Step.OPEN_ATTEMPT,
                rung=rung,
                trigger_rule=TriggerRule.ALL_SUCCESS if rung == 0 else TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS,
            )
            gate_node = steps.GateNode.partial(task_id=Step.GATE_NODE, map_index_template="{{ node }}", **on_one_node()).expand(
                request=open_attempt.output
            )
            gate_fabric = steps.GateFabric(
                task_id=Step.GATE_FABRIC, rung=rung, trigger_rule=TriggerRule.ALL_DONE, **on_all_nodes()
            )
            train_segment = steps.TrainSegment(task_id=Step.TRAIN_SEGMENT, rung=rung, **on_all_nodes())
            validate_checkpoint = steps.ValidateCheckpoint(task_id=Step.VALIDATE_CHECKPOINT, rung=rung)
            verdict = steps.Verdict(task_id=Step.VERDICT, rung=rung, trigger_rule=TriggerRule.ALL_DONE)
            open_attempt >> gate_node >> gate_fabric >> train_segment >> validate_checkpoint >> verdict

            taken = {}
            for branch in graph.branches(rung):
                if branch == Action.ASK:
                    taken[branch] = HITLBranchOperator(
                        task_id=branch,
                        subject="Prunella asks how to go on",
                        body="The verdict's log has the diagnosis and its evidence.",
                        options=["Try again", "Stop here"],
                        options_mapping={
                            "Try again": graph.in_rung(rung + 1, Step.OPEN_ATTEMPT),
                            "Stop here": Step.CLOSE_SEGMENT.value,
                        },
                        defaults="Stop here",
                        response_timeout=timedelta(seconds=graph.ASK_TIMEOUT_S),
                        notifiers=Alert(ASKED),
                    )
                else:
                    taken[branch] = EmptyOperator(task_id=branch)
                verdict >> Label(branch.replace("_", " ")) >> taken[branch]
        openings.append(open_attempt)
        branches.append(taken)

    open_segment >> openings[0]
    following = {opening.task_id: opening for opening in openings} | {
        Step.EVALUATE.value: evaluate,
        Step.CLOSE_SEGMENT.value: close_segment,
    }
    for rung, taken in enumerate(branches):
        for branch, task in taken.items():
            task >> [following[successor] for successor in graph.successors(rung, branch)]

    # Last: tasks take a copy of the parameters there are when they are made, and Airflow proves every copy each time it writes
    # the DAG down. What runs sees the DAG's own.
    dag.params = ParamsDict(PARAMS)
