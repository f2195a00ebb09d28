"""The command line: parse, call one function of the package, print. Decides nothing."""

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from prunella import faults, logs
from prunella.cli_summary import show_summary
from prunella.errors import ConfigError
from prunella.records import Stage

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Prunella keeps a language-model pretraining run alive on machines that break.",
)
checkpoint_app = typer.Typer(no_args_is_help=True, help="List, verify, digest and prune checkpoints.")
node_app = typer.Typer(no_args_is_help=True, help="List, cordon and uncordon nodes.")
fault_app = typer.Typer(no_args_is_help=True, help="Faults that can be injected.")
recipe_app = typer.Typer(no_args_is_help=True, help="Named configurations.")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(node_app, name="node")
app.add_typer(fault_app, name="fault")
app.add_typer(recipe_app, name="recipe")

Root = Annotated[str, typer.Option(help="Where the ledger lies.", show_default=False)]
Experiment = Annotated[str | None, typer.Option(help="Name of the experiment; needed where the root holds several.")]

out = Console()


# ------------------------------------------------------------------------------------------------ run


@app.command()
def run(
    root: Root,
    recipe: Annotated[str | None, typer.Option(help="Named configuration; tiny_moe by default.")] = None,
    config: Annotated[str | None, typer.Option(help="An experiment.toml, laid over the recipe.")] = None,
    experiment: Annotated[str | None, typer.Option(help="Name of the experiment.")] = None,
    segments: Annotated[int | None, typer.Option(min=1, help="Segments in all; repeated, the command continues.")] = None,
    steps_per_segment: Annotated[int | None, typer.Option(min=1, help="Optimizer steps a segment.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes that train together.")] = None,
    fleet: Annotated[str | None, typer.Option(help="Fleet file (YAML).")] = None,
    fault: Annotated[list[str] | None, typer.Option(help="Fault to inject; repeatable; see `prunella fault list`.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A single setting, key=value; repeatable.")] = None,
) -> None:
    """Run an experiment to its end, healing what breaks. Exits 0 only when it is complete."""
    from prunella.orchestration.run import run_experiment

    logs.configure()
    result = run_experiment(
        _submission(root, experiment, recipe, config, segments, steps_per_segment, nodes, None, fleet, fault, set_)
    )
    for spec in result.unfired:
        print(f"prunella: fault {spec} never fired", file=sys.stderr)
    print(f"prunella: {result.message}", file=sys.stderr)
    raise typer.Exit(0 if result.is_good else 1)


def _submission(
    root: str,
    experiment: str | None,
    recipe: str | None,
    config: str | None,
    segments: int | None,
    steps_per_segment: int | None,
    nodes: int | None,
    schedule: str | None,
    fleet: str | None,
    fault: list[str] | None,
    set_: list[str] | None,
) -> Any:
    from prunella.orchestration.submit import Submission

    return Submission(
        root=str(Path(root).absolute()) if "://" not in root else root,
        experiment=experiment,
        recipe=recipe,
        config_file=config,
        segments=segments,
        steps_per_segment=steps_per_segment,
        nodes=nodes,
        schedule=schedule,
        fleet=fleet,
        faults=tuple(fault or ()),
        assignments=tuple(set_ or ()),
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
    """See the loop: a live Airflow, a small mixture of experts, three faults, three recoveries. About ten minutes."""
    from prunella.orchestration.demo import demo as run_demo

    logs.configure(level=logging.ERROR)
    _end_like_ctrl_c_on_sigterm()
    started = time.monotonic()
    document = run_demo(folder.absolute(), out)
    show_summary(document, out)
    out.print(f"report  {folder / 'report.html'}\nsummary {folder / 'summary.json'}\ntook {time.monotonic() - started:.0f} s")
    raise typer.Exit(0 if document["state"] == "complete" else 1)


@app.command()
def up(folder: Annotated[Path, typer.Option("--dir", help="Folder to work in; kept.")] = Path("var/up")) -> None:
    """Keep Airflow and MLflow up on this machine until Ctrl-C; prints addresses and credentials."""
    from prunella.orchestration import live

    logs.configure()
    _end_like_ctrl_c_on_sigterm()
    settings = live.settings_for(folder.absolute(), with_mlflow=True)
    live.scratch_environment(settings)
    with live.start(settings):
        out.print(live.describe(settings))
        live.AirflowApi(settings.airflow_url, live.USER, live.password(settings)).wait_until_ready("pretrain_segment")
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
    recipe: Annotated[str | None, typer.Option(help="Named configuration; tiny_moe by default.")] = None,
    config: Annotated[str | None, typer.Option(help="An experiment.toml, laid over the recipe.")] = None,
    experiment: Annotated[str | None, typer.Option(help="Name of the experiment.")] = None,
    segments: Annotated[int | None, typer.Option(min=1, help="Segments in all.")] = None,
    steps_per_segment: Annotated[int | None, typer.Option(min=1, help="Optimizer steps a segment.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes that train together.")] = None,
    schedule: Annotated[str | None, typer.Option(help="manual, continuous or cron:EXPR.")] = None,
    fleet: Annotated[str | None, typer.Option(help="Fleet file (YAML).")] = None,
    fault: Annotated[list[str] | None, typer.Option(help="Fault to inject; repeatable.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A single setting, key=value; repeatable.")] = None,
) -> None:
    """Open an experiment, or take up the one of that name, and start its next segment on a running Airflow."""
    from prunella.orchestration import live
    from prunella.orchestration.claim import next_segment, run_id_for
    from prunella.orchestration.submit import open_experiment

    logs.configure()
    ledger = open_experiment(
        _submission(root, experiment, recipe, config, segments, steps_per_segment, nodes, schedule, fleet, fault, set_)
    )
    segment = next_segment(ledger)
    if segment is None:
        raise ConfigError(f"experiment {ledger.name!r} is complete; `prunella extend` adds segments")
    conf = {"root": ledger.store.root, "experiment": ledger.name}
    api = live.AirflowApi(airflow, user, password)
    print(api.trigger("pretrain_segment", conf=conf, run_id=run_id_for(ledger, segment)))


# ------------------------------------------------------------------------------------------------ look


@app.command()
def status(
    root: Root,
    experiment: Experiment = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole document, as summary.json has it.")] = False,
) -> None:
    """Where an experiment stands: its summary, folded from the ledger."""
    from prunella.orchestration.publishing import summary_of

    document = summary_of(_ledger(root, experiment))
    if as_json:
        print(json.dumps(document, indent=2))
        return
    show_summary(document, out)


def _ledger(root: str, experiment: str | None) -> Any:
    from prunella.orchestration.submit import find_experiment

    return find_experiment(str(Path(root).absolute()) if "://" not in root else root, experiment)


@app.command()
def report(
    root: Root,
    experiment: Experiment = None,
    output: Annotated[Path | None, typer.Option(help="File to write; under `published/` of the root by default.")] = None,
) -> None:
    """Write report.html of an experiment: loss, incidents, experts, gate, accuracy, time, a sample."""
    from prunella.orchestration.publishing import report_path
    from prunella.tracking.report import write_report

    ledger = _ledger(root, experiment)
    path = output or report_path(ledger)
    write_report(ledger, path)
    print(path)


@app.command()
def publish(root: Root, experiment: Experiment = None) -> None:
    """Write the report and bring MLflow up to date with the ledger. Running it twice adds nothing."""
    from prunella.orchestration.publishing import publish as publish_experiment

    logs.configure(bound={"experiment": experiment})
    print(publish_experiment(_ledger(root, experiment)).run_id)


# ------------------------------------------------------------------------------------------------ steer


@app.command()
def stop(root: Root, experiment: Experiment = None, reason: str = "asked on the command line") -> None:
    """Stop an experiment: a running attempt finishes its step, saves, and closes."""
    from prunella.orchestration.closing import request_stop

    request_stop(_ledger(root, experiment), reason)


@app.command()
def resume(root: Root, experiment: Experiment = None, reason: str = "asked on the command line") -> None:
    """Take a stop back; run or trigger the experiment again to go on."""
    from prunella.orchestration.closing import request_resume

    request_resume(_ledger(root, experiment), reason)


@app.command()
def extend(
    root: Root,
    segments: Annotated[int, typer.Option(min=1, help="The new number of segments in all.")],
    experiment: Experiment = None,
    reason: str = "asked on the command line",
) -> None:
    """Change the number of segments. The learning-rate schedule spans the new total from the next segment on."""
    from prunella.orchestration.closing import extend as extend_experiment

    ledger = _ledger(root, experiment)
    if segments <= ledger.config().segments:
        raise ConfigError(f"--segments {segments}: the experiment has {ledger.config().segments}; it can only be extended")
    extend_experiment(ledger, segments, reason)


# ------------------------------------------------------------------------------------------------ checkpoints

Step = Annotated[int | None, typer.Option(help="Optimizer step of the checkpoint; the last verified one by default.")]


@checkpoint_app.command("list")
def checkpoint_list(root: Root, experiment: Experiment = None) -> None:
    """Every checkpoint and what became of it."""
    from prunella.checkpoint_history import list_checkpoints

    table = Table("name", "step", "state", "promoted", "digest")
    for found in list_checkpoints(_ledger(root, experiment)):
        promoted = "yes" if found.is_promoted else ""
        table.add_row(found.manifest.name, str(found.manifest.step), found.state, promoted, (found.digest or "")[:19])
    out.print(table)


@checkpoint_app.command("digest")
def checkpoint_digest(root: Root, experiment: Experiment = None, step: Step = None) -> None:
    """Digest of a checkpoint's logical content, computed from its files; of a pruned one, as validation recorded it."""
    from prunella import checkpoints

    ledger = _ledger(root, experiment)
    found = _checkpoint(ledger, step)
    if found.state == "pruned":
        print(f"prunella: checkpoint {found.manifest.name} is pruned; this is what validation recorded", file=sys.stderr)
        print(found.digest)
        return
    tensors, state = checkpoints.read_full(ledger, found.ref)
    print(checkpoints.logical_digest(tensors, state))


@checkpoint_app.command("verify")
def checkpoint_verify(root: Root, experiment: Experiment = None, step: Step = None) -> None:
    """Read a checkpoint again: files, digests, and the digest that validation recorded."""
    from prunella import checkpoints

    ledger = _ledger(root, experiment)
    ref = _checkpoint(ledger, step).ref
    tensors, state = checkpoints.read_full(ledger, ref)
    found, verdict = checkpoints.logical_digest(tensors, state), ledger.validation(ref.name)
    if verdict is not None and verdict.digest is not None and verdict.digest != found:
        raise ConfigError(f"checkpoint {ref.name}: validation recorded {verdict.digest}, the files now give {found}")
    print(f"{ref.name} step {ref.step}: {found}")


@checkpoint_app.command("prune")
def checkpoint_prune(
    root: Root,
    experiment: Experiment = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Delete what retention releases; never the last verified checkpoint."""
    from prunella.checkpoint_history import prune

    ledger = _ledger(root, experiment)
    settings = ledger.config().checkpoint
    for status in prune(ledger, keep_last=settings.keep_last, keep_every=settings.keep_every, is_dry_run=dry_run):
        print(status.manifest.name)


def _checkpoint(ledger: Any, step: int | None) -> Any:
    """The last verified checkpoint; of a given step, the best there is: verified, then unjudged, then pruned."""
    from prunella.checkpoint_history import list_checkpoints

    ranks = {"verified": 3, "candidate": 2, "rejected": 1, "revoked": 1, "pruned": 0}
    found = [entry for entry in list_checkpoints(ledger) if _is_meant(entry, step)]
    if not found:
        wanted = "verified checkpoint" if step is None else f"checkpoint of step {step}"
        raise ConfigError(f"experiment {ledger.name!r} has no {wanted}; `prunella checkpoint list` shows what it has")
    return max(found, key=lambda entry: (entry.manifest.step, ranks[entry.state], entry.manifest.attempt))


def _is_meant(entry: Any, step: int | None) -> bool:
    if step is None:
        return bool(entry.state == "verified")
    return bool(entry.manifest.step == step and (entry.state != "pruned" or entry.digest is not None))


# ------------------------------------------------------------------------------------------------ nodes

Node = Annotated[str, typer.Argument(help="Name of the node.")]
Fleet = Annotated[str | None, typer.Option(help="Fleet file; the experiments' own otherwise.")]


@node_app.command("list")
def node_list(root: Root, fleet: Fleet = None) -> None:
    """Every node, its state, and the last word about it."""
    from prunella.fleet.commands import node_table

    table = Table("node", "role", "devices", "state", "owner", "reason")
    for row in node_table(_store(root), _fleet(root, fleet)):
        table.add_row(row.name, str(row.role or ""), str(row.devices or ""), row.state, str(row.owner or ""), row.reason or "")
    out.print(table)


@node_app.command("cordon")
def node_cordon(name: Node, root: Root, reason: Annotated[str, typer.Option(help="Why.")], fleet: Fleet = None) -> None:
    """Keep a node out of training."""
    from prunella.fleet.commands import cordon_node

    print(cordon_node(_store(root), _fleet(root, fleet), name, reason=reason))


@node_app.command("uncordon")
def node_uncordon(
    name: Node,
    root: Root,
    reason: Annotated[str, typer.Option(help="What was repaired, or why not.")],
    override: Annotated[bool, typer.Option("--override", help="Available at once, without a gate; recorded.")] = False,
    fleet: Fleet = None,
) -> None:
    """Return a node: it trains again once it passed a gate."""
    from prunella.fleet.commands import uncordon_node

    print(uncordon_node(_store(root), _fleet(root, fleet), name, reason=reason, is_override=override))


def _store(root: str) -> Any:
    from prunella.storage import open_store

    return open_store(str(Path(root).absolute()) if "://" not in root else root)


def _fleet(root: str, path: str | None) -> Any:
    """The nodes of a fleet file; without one, those of the experiments under the root, or of the default fleet."""
    from prunella.config import Config
    from prunella.fleet.roster import load_fleet
    from prunella.ledger import list_experiments

    if path is not None:
        return load_fleet(path, nodes=1)
    configs = [_ledger(root, name).config() for name in list_experiments(_store(root))] or [Config()]
    found = {node.name: node for config in configs for node in load_fleet(config.fleet, nodes=config.nodes)}
    return tuple(found.values())


# ------------------------------------------------------------------------------------------------ faults, recipes


@fault_app.command("list")
def fault_list() -> None:
    """What can be broken on purpose."""
    table = Table("fault", "what it does")
    for kind, (required, optional, text) in faults.KINDS.items():
        names = [f"{name}=..." for name in required] + [f"\\[{name}=...]" for name in optional]
        table.add_row(f"{kind}:{','.join(names)}", text)
    out.print(table)


@recipe_app.command("list")
def recipe_list() -> None:
    """Names of the recipes."""
    from prunella.recipes import RECIPES

    for name in RECIPES:
        print(name)


@recipe_app.command("show")
def recipe_show(
    name: Annotated[str, typer.Argument(help="Name of the recipe.")],
    world_size: Annotated[int | None, typer.Option(min=1, help="Devices in all; the recipe's nodes by default.")] = None,
    expert_parallel: Annotated[int, typer.Option(min=0, help="Devices that share a layer's experts; 0 chooses.")] = 0,
    as_toml: Annotated[bool, typer.Option("--toml", help="The configuration, as an experiment.toml.")] = False,
) -> None:
    """Parameters, memory a device and FLOPs a token of a recipe on a mesh, from the model built on the meta device."""
    from prunella import config as configuration
    from prunella.model.accounting import describe
    from prunella.recipes import recipe

    chosen = recipe(name)
    if as_toml:
        print(configuration.to_toml(chosen))
        return
    for line in describe(chosen, world_size=world_size or chosen.nodes, expert_parallel=expert_parallel).lines():
        print(line)
