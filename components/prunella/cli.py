"""The command line: parse, call one function of the package, print. Decides nothing."""

import contextlib
import json
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunella import cli_checkpoint, cli_fault, cli_kubernetes, cli_node, cli_pipeline, cli_recipe, logs
from prunella.cli_options import (
    Assignments,
    ConfigFile,
    Experiment,
    Faults,
    FleetFile,
    NewExperiment,
    Nodes,
    Recipe,
    Root,
    Schedule,
    Segments,
    StepsPerSegment,
    absolute,
    ledger_of,
    out,
    submission,
)
from prunella.cli_run import run_command
from prunella.cli_summary import show_summary
from prunella.errors import ConfigError
from prunella.records import Stage

if TYPE_CHECKING:
    from prunella.orchestration.run import RunResult
    from prunella.orchestration.submit import Submission

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Prunella keeps a language-model pretraining run alive on machines that break.",
)
app.add_typer(cli_checkpoint.app, name="checkpoint")
app.add_typer(cli_node.app, name="node")
app.add_typer(cli_fault.app, name="fault")
app.add_typer(cli_pipeline.app, name="pipeline")
app.add_typer(cli_kubernetes.app, name="kubernetes")
app.add_typer(cli_recipe.app, name="recipe")


# ------------------------------------------------------------------------------------------------ run


def _run_the_dag(asked: "Submission") -> "RunResult":
    from prunella.orchestration.run import run_experiment

    return run_experiment(asked)


app.command("run")(
    run_command(_run_the_dag, help_text="Run an experiment to its end, healing what breaks. Exits 0 only when it is complete.")
)


@app.command()
def stage(
    name: Annotated[Stage, typer.Argument(help="Which stage.")],
    root: Root,
    request: Annotated[str, typer.Option(help="Key of the request to answer.")],
    handle: Annotated[Path | None, typer.Option(help="File to register this process in.")] = None,
) -> None:
    """Run one stage: one request in, one record out. Exits 0 whenever a record was written."""
    from prunella.launch.shell import run_stage

    logs.configure(bound={"stage": name.value, **logs.bound_by(request), "node": os.environ.get("PRUNELLA_NODE")})
    code = run_stage(name, root=root, key=request, handle=handle)
    logging.shutdown()
    os._exit(code)  # the record is written; tearing torch down takes seconds and can only fail


@app.command()
def demo(folder: Annotated[Path, typer.Option("--dir", help="Folder to work in; made anew.")] = Path("var/demo")) -> None:
    """See the loop: a live Airflow, a small mixture of experts, three faults, three recoveries. Three to five minutes."""
    from prunella.orchestration.demo import demo as run_demo

    logs.configure(level=logging.ERROR)
    _end_like_ctrl_c_on_sigterm()
    started = time.monotonic()
    document = run_demo(folder.absolute(), out)
    show_summary(document, out)
    out.print(f"report  {folder / 'report.html'}\nsummary {folder / 'summary.json'}\ntook {time.monotonic() - started:.0f} s")
    raise typer.Exit(0 if document["state"] == "complete" else 1)


@app.command()
def up(
    folder: Annotated[Path, typer.Option("--dir", help="Folder to work in; kept.")] = Path("var/up"),
    root: Annotated[
        str | None,
        typer.Option(
            envvar="PRUNELLA_ROOT", help="Where the ledger lies, a folder or s3://BUCKET/PREFIX; in --dir by default."
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(envvar="PRUNELLA_AIRFLOW_PORT", help="Port of Airflow's pages; a free one by default.")
    ] = None,
) -> None:
    """Keep Airflow and MLflow up on this machine until Ctrl-C; prints addresses and credentials."""
    from prunella.launch.engine import container_engine
    from prunella.orchestration import live
    from prunella.orchestration.airflow_api import AirflowApi

    logs.configure()
    _end_like_ctrl_c_on_sigterm()
    folder = folder.absolute()
    with live.occupied(folder):  # before anything is looked for: whoever is at work there holds its ports
        settings = live.settings_for(folder, with_mlflow=True, root=absolute(root) if root else None, airflow_port=port)
        live.scratch_environment(settings)
        with container_engine(), live.start(settings):
            out.print(live.describe(settings))
            AirflowApi(settings.airflow_url, live.USER, live.password(settings)).wait_until_ready("pretrain_segment")
            out.print("ready; Ctrl-C stops it")
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()


def _end_like_ctrl_c_on_sigterm() -> None:
    """Airflow's services start processes of their own, which only an orderly end takes along."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@app.command()
def trigger(
    root: Root,
    airflow: Annotated[str, typer.Option(help="Address of the Airflow, for example http://127.0.0.1:8080.")],
    user: Annotated[str, typer.Option(envvar="PRUNELLA_AIRFLOW_USER", help="Airflow user.")] = "admin",
    password: Annotated[str, typer.Option(envvar="PRUNELLA_AIRFLOW_PASSWORD", prompt=True, hide_input=True)] = "",
    recipe: Recipe = None,
    config: ConfigFile = None,
    experiment: NewExperiment = None,
    segments: Segments = None,
    steps_per_segment: StepsPerSegment = None,
    nodes: Nodes = None,
    schedule: Schedule = None,
    fleet: FleetFile = None,
    fault: Faults = None,
    set_: Assignments = None,
) -> None:
    """Open an experiment, or take up the one of that name, and start its next segment on a running Airflow."""
    from prunella.orchestration.airflow_api import AirflowApi
    from prunella.orchestration.claim import continuation, next_segment, run_id_for
    from prunella.orchestration.submit import open_experiment

    logs.configure()
    asked = submission(
        root=root,
        experiment=experiment,
        recipe=recipe,
        config=config,
        segments=segments,
        steps_per_segment=steps_per_segment,
        nodes=nodes,
        schedule=schedule,
        fleet=fleet,
        fault=fault,
        assignments=set_,
        is_sole_writer=True,  # Airflow starts one of two runs with one id
    )
    api = AirflowApi(airflow, user, password)
    api.log_in()  # nothing is recorded before Airflow answers
    ledger = open_experiment(asked)
    segment = next_segment(ledger)
    if segment is None:
        raise ConfigError(f"experiment {ledger.name!r} is complete; `prunella extend` adds segments")
    print(api.trigger("pretrain_segment", conf=continuation(ledger), run_id=run_id_for(ledger, segment)))


# ------------------------------------------------------------------------------------------------ look


@app.command()
def status(
    root: Root,
    experiment: Experiment = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole document, as summary.json has it.")] = False,
) -> None:
    """Where an experiment stands: its summary, folded from the ledger."""
    from prunella.orchestration.publishing import summary_of

    document = summary_of(ledger_of(root, experiment))
    if as_json:
        print(json.dumps(document, indent=2))
        return
    show_summary(document, out)


@app.command()
def report(
    root: Root,
    experiment: Experiment = None,
    output: Annotated[Path | None, typer.Option(help="File to write; under `published/` of the root by default.")] = None,
) -> None:
    """Write report.html of an experiment: loss, incidents, experts, gate, accuracy, time, a sample."""
    from prunella.orchestration.publishing import report_path
    from prunella.tracking.report import write_report

    ledger = ledger_of(root, experiment)
    try:
        path = output or report_path(ledger)
        write_report(ledger, path)
    except OSError as error:
        where = f"--output {output}" if output else f"--root {root}"
        raise ConfigError(
            f"{where}: the report cannot be written there ({error.strerror or error}); name a file that can be: --output FILE"
        ) from error
    print(path)


@app.command()
def publish(root: Root, experiment: Experiment = None) -> None:
    """Write the report and bring MLflow up to date with the ledger. Running it twice adds nothing."""
    from prunella.orchestration.publishing import publish as publish_experiment

    logs.configure(bound={"experiment": experiment})
    print(publish_experiment(ledger_of(root, experiment)).run_id)


# ------------------------------------------------------------------------------------------------ steer


@app.command()
def stop(root: Root, experiment: Experiment = None, reason: str = "asked on the command line") -> None:
    """Stop an experiment: a running attempt finishes its step, saves, and closes."""
    from prunella.orchestration.closing import request_stop

    ledger = ledger_of(root, experiment)
    request_stop(ledger, reason)
    print(f"experiment {ledger.name!r} is to stop: a running attempt finishes its step, saves and closes")


@app.command()
def resume(root: Root, experiment: Experiment = None, reason: str = "asked on the command line") -> None:
    """Take a stop back; run or trigger the experiment again to go on."""
    from prunella.orchestration.closing import request_resume

    ledger = ledger_of(root, experiment)
    request_resume(ledger, reason)
    print(f"experiment {ledger.name!r} may go on: run or trigger it again")


@app.command()
def extend(
    root: Root,
    segments: Annotated[int, typer.Option(min=1, help="The new number of segments in all.")],
    experiment: Experiment = None,
    reason: str = "asked on the command line",
) -> None:
    """Change the number of segments. The learning-rate schedule spans the new total from the next segment on."""
    from prunella.orchestration.closing import extend as extend_experiment

    ledger = ledger_of(root, experiment)
    if segments <= ledger.config().segments:
        raise ConfigError(f"--segments {segments}: the experiment has {ledger.config().segments}; it can only be extended")
    extend_experiment(ledger, segments, reason)
    print(f"experiment {ledger.name!r} has {segments} segments in all: run or trigger it again to train the new ones")
