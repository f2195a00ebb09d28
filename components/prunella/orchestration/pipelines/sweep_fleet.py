"""The pipeline that gates the nodes that nobody trains on. Give it a recurring run, every ten minutes."""

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from prunella.orchestration.pipelines.form import JOB_ID, Form

NAME = "sweep-fleet"


def sweep_fleet(form: Form) -> GraphComponent:
    """The pipeline, in a form."""

    @dsl.pipeline(name=NAME, description="Gates idle and cordoned nodes")
    def pipeline(root: str, fleet: str = "") -> None:
        choose_nodes = form.task("choose_nodes", root=root, job_id=JOB_ID, fleet=fleet)
        with dsl.ParallelFor(form.answer(choose_nodes), name="nodes", parallelism=1) as request:
            form.task("gate_swept_node", root=root, request=request)

    return pipeline
