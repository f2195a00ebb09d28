"""`prunella pipeline`: the same graph for Kubeflow Pipelines, as files or run on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunella import logs
from prunella.cli_options import out
from prunella.cli_run import run_command

if TYPE_CHECKING:
    from prunella.orchestration.run import RunResult
    from prunella.orchestration.submit import Submission

app = typer.Typer(no_args_is_help=True, help="The same graph for Kubeflow Pipelines.")


@app.command("compile")
def compile_(
    output: Annotated[Path, typer.Option(help="Folder to write to; made if absent.")],
    image_prefix: Annotated[str, typer.Option(help="Registry of the images, with its slash; none by default.")] = "",
    store_secret: Annotated[
        str, typer.Option(help="Secret and config map of that name tell the pods how to reach the bucket; '' for none.")
    ] = "prunella-store",  # noqa: S107 - the name of a secret, not one
    devices: Annotated[int, typer.Option(min=0, help="Accelerators for each pod that runs a stage with torch.")] = 0,
    device_resource: Annotated[str, typer.Option(help="What the cluster calls an accelerator.")] = "nvidia.com/gpu",
    lightweight: Annotated[
        bool, typer.Option("--lightweight", help="Components that carry their source, instead of containers.")
    ] = False,
) -> None:
    """Write the pipelines as YAML, ready to upload: the same bytes from the same source."""
    from prunella.orchestration.pipelines.compile import compile_pipelines
    from prunella.orchestration.pipelines.form import Form

    form = Form(
        is_container=not lightweight,
        prefix=image_prefix,
        store_secret=store_secret,
        device_resource=device_resource,
        devices=devices,
    )
    for path in compile_pipelines(output, form):
        out.print(str(path))


def _run_the_pipeline(asked: "Submission") -> "RunResult":
    from prunella.orchestration.pipelines.run_local import local_pipeline_engine
    from prunella.orchestration.run import run_experiment

    return run_experiment(asked, local_pipeline_engine)


app.command("run-local")(
    run_command(
        _run_the_pipeline,
        help_text="Run an experiment to its end under Kubeflow's local runner. Takes and means what `prunella run` does.",
    )
)


@app.command(hidden=True)
def step(
    name: Annotated[str, typer.Argument(help="Name of the step.")],
    executor_input: Annotated[str, typer.Option(help="What Kubeflow says of inputs and outputs, as JSON.")],
) -> None:
    """Run one component's function inside its image. Kubeflow calls this."""
    from prunella.orchestration.pipelines.components import run_in_container

    logs.configure()
    run_in_container(name, executor_input)
