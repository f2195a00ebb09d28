"""The steps that have lineage, as a DAG of their own; its stages have all answered already. `lineage_dag.py ROOT` runs it.

Copied into a DAG folder by test_lineage.py, which reads the events that Airflow's OpenLineage provider wrote meanwhile.
"""

import sys

from airflow.sdk import DAG, Param

from prunella.orchestration import airflow_operators as steps
from prunella.orchestration.graph import Step

with DAG(
    dag_id="lineage",
    schedule=None,
    params={
        "root": Param("", type="string"),
        "experiment": Param("demo", type="string"),
        "run_id": Param("demo__seg-0000__r0", type="string"),
    },
) as dag:
    (
        steps.PrepareData(task_id=Step.PREPARE_DATA)
        >> steps.TrainSegment(task_id=Step.TRAIN_SEGMENT, rung=1)
        >> steps.ValidateCheckpoint(task_id=Step.VALIDATE_CHECKPOINT, rung=1)
    )

if __name__ == "__main__":
    run = dag.test(logical_date=None, run_conf={"root": sys.argv[1]})
    print(f"FOUND {run.state}")
