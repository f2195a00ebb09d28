"""Gate the nodes that nobody trains on: new, idle, returned, and cordoned ones that a pass can clear.

## What it does
Every ten minutes: gates each such node alone and enters the answer in the node ledger. A cordoned node that passes is
returned, and available again when it passes once more. Nodes of a running attempt are left in peace: each gate asks again
when it is its turn, and is skipped where an attempt began meanwhile.
Where stages run on Kubernetes (`PRUNELLA_LAUNCH=kubernetes`), a last task shows every node's state to the cluster: cordons as
taints.

## What pages a person
Nothing. `prunella node list` shows every node with the last word about it.

## Why a gate stays scheduled
With `PRUNELLA_POOL_SLOTS` set it waits for a slot of the pool `prunella_nodes`, behind all work of segments.

## How to return a repaired node
`prunella node uncordon NAME --reason "what was repaired"`: it trains again once it passed a gate.
"""

import os
from datetime import timedelta

from airflow.sdk import DAG, Param, task

from prunella.launch import door
from prunella.orchestration.masking import mask_secrets
from prunella.orchestration.scheduling import in_queue, on_one_idle_node

with DAG(
    dag_id="sweep_fleet",
    description="Gates idle and cordoned nodes",
    schedule=timedelta(minutes=10),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    params={
        "root": Param(os.environ.get("PRUNELLA_ROOT", "var/prunella"), type="string", description="Where the ledger lies."),
        "fleet": Param(
            None, type=["null", "string"], description="Fleet file; otherwise every node of the experiments under the root."
        ),
    },
    doc_md=__doc__,
    tags=["prunella"],
    default_args={"owner": "prunella", "pre_execute": mask_secrets, **in_queue()},
) as dag:
    # The first tick may come before the API server listens; a second try finds the requests of the first.
    @task(retries=2, retry_delay=timedelta(seconds=5))
    def choose_nodes(params=None, dag_run=None):
        """Keys of one gate request a node."""
        from prunella.orchestration.sweep import open_sweep

        return open_sweep(params["root"], params["fleet"], dag_run.run_id)

    @task(map_index_template="{{ node }}", max_active_tis_per_dagrun=1, **on_one_idle_node())
    def gate_node(request, params=None):
        """Gate one node; enter the answer."""
        from airflow.sdk import get_current_context
        from airflow.sdk.exceptions import AirflowSkipException

        from prunella.orchestration.sweep import BUSY, gate_swept_node, node_of

        get_current_context()["node"] = node_of(request)
        state = gate_swept_node(params["root"], request)
        if state == BUSY:
            raise AirflowSkipException("an attempt works on the node")
        return state

    gates = gate_node.expand(request=choose_nodes())

    if door.launcher() == door.KUBERNETES:

        @task(trigger_rule="all_done", retries=2, retry_delay=timedelta(seconds=5))
        def show_nodes(params=None):
            """Cordons as taints, states and roles as labels, on every node of the cluster."""
            from prunella.orchestration.sweep import show_on_cluster

            return show_on_cluster(params["root"], params["fleet"])

        gates >> show_nodes()
