"""What several commands share: options, what they mean to the package, and the console that all print on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from prunella.fleet.roster import FleetNode
    from prunella.ledger import Ledger
    from prunella.orchestration.submit import Submission
    from prunella.storage import Store

Root = Annotated[str, typer.Option(help="Where the ledger lies: a folder, or s3://BUCKET/PREFIX.", show_default=False)]
Experiment = Annotated[str | None, typer.Option(help="Name of the experiment; needed where the root holds several.")]

NewExperiment = Annotated[str | None, typer.Option("--experiment", help="Name of the experiment.")]
Recipe = Annotated[str | None, typer.Option("--recipe", help="Named configuration; tiny_moe by default.")]
ConfigFile = Annotated[str | None, typer.Option("--config", help="An experiment.toml, laid over the recipe.")]
Segments = Annotated[int | None, typer.Option("--segments", min=1, help="Segments in all; repeated, the command continues.")]
StepsPerSegment = Annotated[int | None, typer.Option("--steps-per-segment", min=1, help="Optimizer steps a segment.")]
Nodes = Annotated[int | None, typer.Option("--nodes", min=1, help="Nodes that train together.")]
Schedule = Annotated[str | None, typer.Option("--schedule", help="manual, continuous or cron:EXPR.")]
FleetFile = Annotated[str | None, typer.Option("--fleet", help="Fleet file (YAML).")]
Faults = Annotated[list[str] | None, typer.Option("--fault", help="Fault to inject; repeatable; see `prunella fault list`.")]
Assignments = Annotated[list[str] | None, typer.Option("--set", help="A single setting, key=value; repeatable.")]


SoleWriter = Annotated[
    bool, typer.Option("--sole-writer", help="Nobody else writes there; needed where a bucket cannot arbitrate.")
]

out = Console()


def absolute(root: str) -> str:
    """A root that means the same from any folder."""
    return str(Path(root).absolute()) if "://" not in root else root


def ledger_of(root: str, experiment: str | None) -> "Ledger":
    """The ledger of an existing experiment. Raises ConfigError where it is not clear which."""
    from prunella.orchestration.submit import find_experiment

    return find_experiment(absolute(root), experiment)


def store_of(root: str) -> "Store":
    """The object store at a root. Raises ConfigError where a folder is not there."""
    from prunella.storage import check_root_is_there, open_patiently

    check_root_is_there(root)
    return open_patiently(absolute(root))


def fleet_of(root: str, path: str | None) -> "tuple[FleetNode, ...]":
    """The nodes of a fleet file; without one, those of the experiments under the root, or of the default fleet."""
    from prunella.fleet.roster import known_fleet

    return known_fleet(store_of(root), path)


def submission(
    *,
    root: str,
    experiment: str | None,
    recipe: str | None,
    config: str | None,
    segments: int | None,
    steps_per_segment: int | None,
    nodes: int | None,
    fleet: str | None,
    fault: list[str] | None,
    assignments: list[str] | None,
    schedule: str | None = None,
    is_sole_writer: bool = False,
) -> "Submission":
    """What a person asked for."""
    from prunella.orchestration.submit import Submission

    return Submission(
        root=absolute(root),
        experiment=experiment,
        recipe=recipe,
        config_file=config,
        segments=segments,
        steps_per_segment=steps_per_segment,
        nodes=nodes,
        schedule=schedule,
        fleet=fleet,
        faults=tuple(fault or ()),
        assignments=tuple(assignments or ()),
        is_sole_writer=is_sole_writer,
    )
