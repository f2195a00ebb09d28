"""The pipeline of one segment: the ladder of `graph.py`, written by hand; a test holds that it has exactly its edges.

What the DAG has and a pipeline cannot: nobody is asked (`ask` takes `policy.unattended` before the branch is chosen), and
the next segment is not triggered from here. The loop over segments stays outside: a recurring run, or `run-local`.

A stage that dies is an answer like any other, because its component watches it. A component that dies itself, with its pod,
ends the pipeline run: on Kubeflow's backend nothing but an exit handler runs after a task that failed. The exit handler
judges the attempt and closes, and the next run goes on.
"""

from typing import Any

from kfp import dsl, kubernetes
from kfp.dsl.graph_component import GraphComponent
from kfp.dsl.pipeline_channel import PipelineChannel

from prunella.orchestration import graph
from prunella.orchestration.graph import Step
from prunella.orchestration.pipelines.form import JOB_ID, Form

NAME = "pretrain-segment"


def pretrain_segment(form: Form) -> GraphComponent:
    """The pipeline, in a form."""

    @dsl.pipeline(name=NAME, description="One segment of a pretraining experiment: gate, train, validate, heal, evaluate")
    def pipeline(
        root: str,
        experiment: str,
        run_id: str = "",
        recipe: str = "",
        config_file: str = "",
        segments: int = 0,
        steps_per_segment: int = 0,
        nodes: int = 0,
        seed: int = -1,
        fleet: str = "",
        faults: list = [],  # type: ignore[type-arg] # noqa: B006 - Kubeflow's form of a list with a default
        settings: list = [],  # type: ignore[type-arg] # noqa: B006
        sole_writer: bool = False,
    ) -> None:
        run = {"root": root, "experiment": experiment, "job_id": JOB_ID, "run_id": run_id}
        close_segment = form.task(Step.CLOSE_SEGMENT, **run)
        with dsl.ExitHandler(close_segment, name="segment"):
            prepare_data = form.task(
                Step.PREPARE_DATA,
                **run,
                recipe=recipe,
                config_file=config_file,
                segments=segments,
                steps_per_segment=steps_per_segment,
                nodes=nodes,
                seed=seed,
                fleet=fleet,
                faults=faults,
                settings=settings,
                sole_writer=sole_writer,
            )
            open_segment = form.task(Step.OPEN_SEGMENT, **run).after(prepare_data)
            _climb(form, run, rung=0, after=open_segment)

    return pipeline


def _climb(form: Form, run: dict[str, Any], *, rung: int, after: dsl.PipelineTask | None = None) -> None:
    """One rung: an attempt, its verdict, and the branch that was taken; recoveries climb on."""
    taken = _branch(form, rung, form.answer(_attempt(form, run, rung, [after] if after else [])))
    with dsl.If(taken == Step.EVALUATE.value, name="accepted"):
        evaluate = form.task(Step.EVALUATE, **run)
        form.task(Step.PROMOTE, **run).after(evaluate)
    if not graph.is_last(rung):
        following = graph.in_rung(rung + 1, Step.OPEN_ATTEMPT)
        with dsl.If(taken == following, name=f"again: {graph.rung_name(rung + 1)}"):
            _climb(form, run, rung=rung + 1)


def _attempt(form: Form, run: dict[str, Any], rung: int, after: list[dsl.PipelineTask]) -> dsl.PipelineTask:
    """Gate, train, validate, judge; returns the verdict's task."""

    def task(step: Step, **arguments: Any) -> dsl.PipelineTask:
        return form.task(step, display=graph.in_rung(rung, step), **run, **arguments)

    open_attempt = task(Step.OPEN_ATTEMPT, rung=rung).after(*after)
    with dsl.ParallelFor(form.answer(open_attempt), name=f"nodes of {graph.rung_name(rung)}") as request:
        gate_node = task(Step.GATE_NODE, request=request)
    gate_fabric = task(Step.GATE_FABRIC, rung=rung).after(gate_node)
    train_segment = task(Step.TRAIN_SEGMENT, rung=rung).after(gate_fabric)
    kubernetes.add_node_affinity_json(train_segment, form.answer(gate_fabric))
    validate_checkpoint = task(Step.VALIDATE_CHECKPOINT, rung=rung).after(train_segment)
    return task(Step.VERDICT, rung=rung).after(validate_checkpoint)


def _branch(form: Form, rung: int, decision: PipelineChannel) -> PipelineChannel:
    """The branches of a verdict, one of them taken; returns the step that follows it."""
    *named, last = graph.branches(rung)
    ways = []
    for number, name in enumerate(named):
        kind = dsl.If if number == 0 else dsl.Elif
        with kind(decision == name, name=name.replace("_", " ")):
            ways.append(form.answer(_way(form, rung, name)))
    with dsl.Else(name=last.replace("_", " ")):
        ways.append(form.answer(_way(form, rung, last)))
    return form.answer(form.task("follow", to=dsl.OneOf(*ways)))


def _way(form: Form, rung: int, name: str) -> dsl.PipelineTask:
    """A branch. `ask` closes: in a pipeline nobody answers, and judging has taken `policy.unattended` in its place."""
    *_, to = graph.successors(rung, name)
    full_name = graph.in_rung(rung, name)
    return form.task("branch", display=full_name, taken=full_name, to=to)
