"""The components of the pipelines, each written once: a typed function, its image and what it needs of a machine.

From that one spec come two forms of a component, with the same inputs, outputs and description. The lightweight one carries
the function's source, and runs wherever the package is installed, also without containers. The container one runs the same
function out of the image, through `prunella pipeline step`. The only difference that Kubeflow imposes is the name of the
plain answer: `Output` there, `answer` here.

Kubeflow takes the source of the functions, so each imports what it needs itself.
"""

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List  # noqa: UP035 - Kubeflow's preamble knows List

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from prunella.launch.images import image_name

#: Name of the plain answer in a lightweight component: Kubeflow's own word, refused in container components.
LIGHTWEIGHT_ANSWER = "Output"
CONTAINER_ANSWER = "answer"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One component before it takes a form.

    Attributes:
        image: `trainer` (torch) or `worker` (none), of `containers/`.
        cpu: cores, as Kubernetes writes them.
        memory: as Kubernetes writes it. Source: own choice 2026-11, ample for the tiny recipes, not measured; a recipe
            of another size sets its own in the compiled file.
    """

    function: Callable[..., Any]
    image: str
    cpu: str
    memory: str

    @property
    def name(self) -> str:
        """The step's name, as in `graph.py`."""
        return self.function.__name__

    def image_name(self, prefix: str) -> str:
        """The image's full name. `prefix` is the registry's, with its slash; empty for images of this machine."""
        return image_name(self.image, prefix)

    def lightweight(self, prefix: str = "") -> BaseComponent:
        """The form that carries its source."""
        return dsl.component(self.function, base_image=self.image_name(prefix), install_kfp_package=False)

    def container(self, prefix: str = "") -> BaseComponent:
        """The form that runs out of the image."""

        def spec(*_values: Any, **_by_name: Any) -> dsl.ContainerSpec:
            return dsl.ContainerSpec(
                image=self.image_name(prefix),
                command=["python", "-m", "prunella", "pipeline", "step", self.name],
                args=["--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
            )

        spec.__name__, spec.__doc__ = self.name, self.function.__doc__
        spec.__signature__ = _container_signature(self.function)  # type: ignore[attr-defined]
        return dsl.container_component(spec)


def _container_signature(function: Callable[..., Any]) -> inspect.Signature:
    """The function's parameters, and its answer as one more: a container has no return value."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if signature.return_annotation is not None:
        annotation = dsl.OutputPath(signature.return_annotation)
        parameters.append(inspect.Parameter(CONTAINER_ANSWER, inspect.Parameter.KEYWORD_ONLY, annotation=annotation))
    return inspect.Signature([parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters])


STEPS: dict[str, Step] = {}


def step(*, image: str, cpu: str, memory: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a component."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        STEPS[function.__name__] = Step(function=function, image=image, cpu=cpu, memory=memory)
        return function

    return register


# ------------------------------------------------------------------------------------------------ pretrain_segment


@step(image="worker", cpu="2", memory="4Gi")
def prepare_data(
    dataset: dsl.Output[dsl.Dataset],
    root: str,
    experiment: str,
    job_id: str,
    run_id: str = "",
    recipe: str = "",
    config_file: str = "",
    segments: int = 0,
    steps_per_segment: int = 0,
    nodes: int = 0,
    seed: int = -1,
    fleet: str = "",
    faults: List[str] = [],  # noqa: B006, UP006 - Kubeflow's form of a list with a default
    settings: List[str] = [],  # noqa: B006, UP006
    sole_writer: bool = False,
) -> str:
    """Open the experiment if it is new, claim its next segment, and have its data set made or verified.

    Args:
        dataset: the token data set: fingerprint, tokens, documents.
        root: where the ledger lies.
        experiment: name of the campaign.
        job_id: Kubeflow's id of this pipeline run.
        run_id: another id for it; Kubeflow's own when empty.
        recipe: named configuration; empty keeps what the experiment was opened with.
        config_file: an experiment.toml laid over the recipe.
        segments: segments in all; 0 keeps.
        steps_per_segment: optimizer steps a segment; 0 keeps.
        nodes: nodes that train together; 0 keeps.
        seed: seed of initialisation and data order; -1 keeps.
        fleet: fleet file that lists nodes and spares.
        faults: faults to inject.
        settings: single settings, key=value.
        sole_writer: nobody else writes to the experiment; needed where a bucket cannot arbitrate.

    Returns:
        Output: key of the claim in the ledger.
    """
    from prunella.orchestration.pipelines import steps
    from prunella.orchestration.submit import Submission

    submission = Submission(
        root=root,
        experiment=experiment,
        recipe=recipe or None,
        config_file=config_file or None,
        segments=segments or None,
        steps_per_segment=steps_per_segment or None,
        nodes=nodes or None,
        seed=None if seed < 0 else seed,
        fleet=fleet or None,
        faults=tuple(faults),
        assignments=tuple(settings),
        is_sole_writer=sole_writer,
    )
    found = steps.prepare_data(submission, run_id or job_id)
    found.describe(dataset)
    return found.answer


@step(image="worker", cpu="1", memory="1Gi")
def open_segment(root: str, experiment: str, job_id: str, run_id: str = "") -> None:
    """Check that the segment may run, stop what an earlier run left behind, and settle its attempts.

    Args:
        root: where the ledger lies.
        experiment: name of the campaign.
        job_id: Kubeflow's id of this pipeline run.
        run_id: another id for it; Kubeflow's own when empty.
    """
    from prunella.orchestration.pipelines import steps

    run = steps.run_of(root, experiment, run_id or job_id)
    steps.open_segment(run)


@step(image="trainer", cpu="2", memory="4Gi")
def open_attempt(root: str, experiment: str, job_id: str, rung: int, run_id: str = "") -> List[str]:  # noqa: UP006 - Kubeflow's form
    """Take the token of an attempt and find the newest checkpoint that passes.

    Args:
        root: where the ledger lies.
        experiment: name of the campaign.
        job_id: Kubeflow's id of this pipeline run.
        rung: place in the ladder, from 0.
        run_id: another id for it; Kubeflow's own when empty.

    Returns:
        Output: one gate request a node.
    """
    from prunella.orchestration.pipelines import steps

    run = steps.run_of(root, experiment, run_id or job_id)
    return steps.open_attempt(run, rung)


@step(image="trainer", cpu="1", memory="2Gi")
def gate_node(root: str, experiment: str, job_id: str, request: str, run_id: str = "") -> str:
    """Check one node alone, and enter the answer in the node ledger.

    Args:
        root: where the ledger lies.
        experiment: name of the campaign.
        job_id: Kubeflow's id of this pipeline run.
        request: key of the gate request.
        run_id: another id for it; Kubeflow's own when empty.
    """
    from prunella.orchestration.pipelines import steps

    run = steps.run_of(root, experiment, run_id or job_id)
    return steps.gate_node(run, request)


@step(image="trainer", cpu="2", memory="4Gi")
def gate_fabric(root: str, experiment: str, job_id: str, rung: int, run_id: str = "") -> dict:  # type: ignore[type-arg]  # Kubeflow's form of a JSON object
    """Check the links between the nodes that passed alone.

    Args:
        root: where the ledger lies.
        experiment: name of the campaign.
        job_id: Kubeflow's id of this pipeline run.
        rung: place in the ladder, from 0.
        run_id: another id for it; Kubeflow's own when empty.

    Returns:
        Output: node affinity that keeps training off every node of the fleet that was not admitted.
    """
    from prunella.orchestration.pipelines import steps

    run = steps.run_of(root, experiment, run_id or job_id)
    return steps.gate_fabric(run, rung)


@step(image="trainer", cpu="4", memory="8Gi")
def train_segment(
    metrics: dsl.Output[dsl.Metrics], root: str, experiment: str, job_id: str, rung: int, run_id: str = ""
) -> str:
    """Train what is left of the segment on the admitted nodes.

    Args:
        metrics: steps, world size, candidates, last loss.
        root: where the ledger lies.
        experiment: name of the campaign.
        job_id: Kubeflow's id of this pipeline run.
        rung: place in the ladder, from 0.
        run_id: another id for it; Kubeflow's own when empty.
    """
    from prunella.orchestration.pipelines import steps

    run = steps.run_of(root, experiment, run_id or job_id)
    found = steps.train_segment(run, rung)
    for name, value in found.metadata.items():
        metrics.log_metric(name, value)
    return found.answer


@step(image="trainer", cpu="2", memory="8Gi")
def validate_checkpoint(
    checkpoint: dsl.Output[dsl.Model], root: str, experiment: str, job_id: str, rung: int, run_id: str = ""
) -> str:
    """Have the attempt's last candidate judged in a fresh process.

    Args:
        checkpoint: where it lies, its step, its verdict and its digest.
        root: where the ledger lies.
        experiment: name of the campaign.
        job_id: Kubeflow's id of this pipeline run.
        rung: place in the ladder, from 0.
        run_id: another id for it; Kubeflow's own when empty.
    """
    from prunella.orchestration.pipelines import steps

    run = steps.run_of(root, experiment, run_id or job_id)
    found = steps.validate_checkpoint(run, rung)
    found.describe(checkpoint)
    return found.answer


@step(image="worker", cpu="1", memory="1Gi")
def verdict(decision: dsl.Output[dsl.Markdown], root: str, experiment: str, job_id: str, rung: int, run_id: str = "") -> str:
    """Diagnose the attempt, ask the policy, write one decision. Runs whatever became of the steps before it.

    Args:
        decision: what was decided, by which row of the policy, and the evidence.
        root: where the ledger lies.
        experiment: name of the campaign.
        job_id: Kubeflow's id of this pipeline run.
        rung: place in the ladder, from 0.
        run_id: another id for it; Kubeflow's own when empty.

    Returns:
        Output: the branch to take.
    """
    from prunella.orchestration.pipelines import steps

    found = steps.verdict(steps.run_of(root, experiment, run_id or job_id), rung)
    with open(decision.path, "w") as file:
        file.write(found.text)
    return found.answer


@step(image="worker", cpu="100m", memory="128Mi")
def branch(taken: str, to: str) -> str:
    """One way out of a verdict; it runs when that way is taken.

    Args:
        taken: the decision.
        to: the step that follows.
    """
    print(f"{taken}: on to {to}")  # noqa: T201 - what a person reads in the log of the branch
    return to


@step(image="worker", cpu="100m", memory="128Mi")
def follow(to: str) -> str:
    """Where the branch that was taken leads.

    Args:
        to: the step that follows.
    """
    return to


@step(image="trainer", cpu="2", memory="8Gi")
def evaluate(metrics: dsl.Output[dsl.Metrics], root: str, experiment: str, job_id: str, run_id: str = "") -> str:
    """Measure the accepted checkpoint on held-out text and on downstream tasks.

    Args:
        metrics: held-out loss, bits per byte, accuracy by task.
        root: where the ledger lies.
        experiment: name of the campaign.
        job_id: Kubeflow's id of this pipeline run.
        run_id: another id for it; Kubeflow's own when empty.
    """
    from prunella.orchestration.pipelines import steps

    run = steps.run_of(root, experiment, run_id or job_id)
    found = steps.evaluate(run)
    for name, value in found.metadata.items():
        metrics.log_metric(name, value)
    return found.answer


@step(image="worker", cpu="1", memory="1Gi")
def promote(root: str, experiment: str, job_id: str, run_id: str = "") -> str:
    """Promote the checkpoint unless its evaluation shows a regression.

    Args:
        root: where the ledger lies.
        experiment: name of the campaign.
        job_id: Kubeflow's id of this pipeline run.
        run_id: another id for it; Kubeflow's own when empty.
    """
    from prunella.orchestration.pipelines import steps

    run = steps.run_of(root, experiment, run_id or job_id)
    return steps.promote(run)


@step(image="worker", cpu="1", memory="2Gi")
def close_segment(
    report: dsl.Output[dsl.HTML],
    root: str,
    experiment: str,
    job_id: str,
    status: dsl.PipelineTaskFinalStatus,
    run_id: str = "",
) -> None:
    """Write the segment's outcome with its incidents, publish it, and fail when the segment failed. Always runs.

    Args:
        report: the experiment's report.
        root: where the ledger lies.
        experiment: name of the campaign.
        job_id: Kubeflow's id of this pipeline run.
        status: how the steps before ended.
        run_id: another id for it; Kubeflow's own when empty.
    """
    from prunella.orchestration.pipelines import steps

    # What Kubeflow's backend calls COMPLETE its local runner calls SUCCEEDED.
    is_well = status.state in ("SUCCEEDED", "COMPLETE")
    error = "" if is_well else status.error_message or "a step of the pipeline failed"
    with open(report.path, "w") as file:
        file.write(steps.close_segment(steps.run_of(root, experiment, run_id or job_id), error))


# ------------------------------------------------------------------------------------------------ sweep_fleet


@step(image="worker", cpu="1", memory="1Gi")
def choose_nodes(root: str, job_id: str, fleet: str = "") -> List[str]:  # noqa: UP006 - Kubeflow's form
    """Choose the nodes that nobody trains on.

    Args:
        root: where the ledger lies.
        job_id: Kubeflow's id of this pipeline run.
        fleet: fleet file; the default fleet otherwise.

    Returns:
        Output: one gate request a node.
    """
    from prunella.orchestration.sweep import open_sweep

    return open_sweep(root, fleet or None, job_id)


@step(image="trainer", cpu="1", memory="2Gi")
def gate_swept_node(root: str, request: str) -> str:
    """Check one idle or cordoned node alone, and enter the answer in the node ledger.

    Args:
        root: where the ledger lies.
        request: key of the gate request.

    Returns:
        Output: the state the node is in now.
    """
    from prunella.orchestration.sweep import gate_swept_node as gate

    return gate(root, request)


# ------------------------------------------------------------------------------------------------ inside an image


def run_in_container(name: str, executor_input: str) -> None:
    """Run a component's function through Kubeflow's executor, as its container form was told to.

    Args:
        name: of the step.
        executor_input: what Kubeflow put in for the placeholder: inputs, and where outputs go. JSON.
    """
    from kfp.dsl.executor import Executor

    given = json.loads(executor_input)
    parameters = given["outputs"].get("parameters", {})
    wanted = parameters.pop(CONTAINER_ANSWER, None)
    if wanted is not None:
        parameters[LIGHTWEIGHT_ANSWER] = wanted
    written = Executor(executor_input=given, function_to_execute=STEPS[name].function).execute()
    if written is not None and wanted is not None:
        _answer_as_container(Path(written), Path(wanted["outputFile"]))


def _answer_as_container(output: Path, answer: Path) -> None:
    """Where a container's answer belongs: under its own name in the executor's output, and in a file of its own."""
    document = json.loads(output.read_text())
    value = document["parameterValues"].pop(LIGHTWEIGHT_ANSWER)
    document["parameterValues"][CONTAINER_ANSWER] = value
    output.write_text(json.dumps(document))
    answer.parent.mkdir(parents=True, exist_ok=True)
    answer.write_text(value if isinstance(value, str) else json.dumps(value))


@functools.cache
def component(name: str, *, is_container: bool, prefix: str) -> BaseComponent:
    """A step in the form wanted."""
    chosen = STEPS[name]
    return chosen.container(prefix) if is_container else chosen.lightweight(prefix)
