"""`prunella pipeline`: the same graph for Kubeflow Pipelines, as files or run on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from prunella import logs
from prunella.cli_options import (
    Assignments,
    ConfigFile,
    Faults,
    FleetFile,
    NewExperiment,
    Nodes,
    Recipe,
    Root,
    Segments,
    SoleWriter,
    StepsPerSegment,
    out,
    submission,
)
from prunella.cli_summary import end_of_run

app = typer.Typer(no_args_is_help=True, help="The same graph for Kubeflow Pipelines.")


@app.command("compile")
def compile_(
    output: Annotated[Path, typer.Option(help="Folder to write to; made if absent.")],
    image_prefix: Annotated[str, typer.Option(help="Registry of the images, with its slash; none by default.")] = "",
    lightweight: Annotated[
        bool, typer.Option("--lightweight", help="Components that carry their source, instead of containers.")
    ] = False,
) -> None:
    """Write the pipelines as YAML, ready to upload: the same bytes from the same source."""
    from prunella.orchestration.pipelines.compile import compile_pipelines
    from prunella.orchestration.pipelines.form import Form

    for path in compile_pipelines(output, Form(is_container=not lightweight, prefix=image_prefix)):
        out.print(str(path))


@app.command("run-local")
def run_local(
    root: Root,
    recipe: Recipe = None,
    config: ConfigFile = None,
    experiment: NewExperiment = None,
    segments: Segments = None,
    steps_per_segment: StepsPerSegment = None,
    nodes: Nodes = None,
    fleet: FleetFile = None,
    fault: Faults = None,
    set_: Assignments = None,
    sole_writer: SoleWriter = False,
) -> None:
    """Run an experiment to its end under Kubeflow's local runner. Takes and means what `prunella run` does."""
    from prunella.orchestration.pipelines.run_local import local_pipeline_engine
    from prunella.orchestration.run import run_experiment

    logs.configure()
    asked = submission(
        root=root,
        experiment=experiment,
        recipe=recipe,
        config=config,
        segments=segments,
        steps_per_segment=steps_per_segment,
        nodes=nodes,
        fleet=fleet,
        fault=fault,
        assignments=set_,
        is_sole_writer=sole_writer,
    )
    raise typer.Exit(end_of_run(run_experiment(asked, local_pipeline_engine)))


@app.command(hidden=True)
def step(
    name: Annotated[str, typer.Argument(help="Name of the step.")],
    executor_input: Annotated[str, typer.Option(help="What Kubeflow says of inputs and outputs, as JSON.")],
) -> None:
    """Run one component's function inside its image. Kubeflow calls this."""
    from prunella.orchestration.pipelines.components import run_in_container

    logs.configure()
    run_in_container(name, executor_input)
