"""The command that runs an experiment to its end, once for every engine: the options and the ending are the same."""

from collections.abc import Callable
from typing import TYPE_CHECKING

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
    submission,
)
from prunella.cli_summary import end_of_run

if TYPE_CHECKING:
    from prunella.orchestration.run import RunResult
    from prunella.orchestration.submit import Submission


def run_command(run: "Callable[[Submission], RunResult]", *, help_text: str) -> Callable[..., None]:
    """The command. `run` imports its engine itself: it is called after the options were parsed."""

    def command(
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
        raise typer.Exit(end_of_run(run(asked)))

    command.__doc__ = help_text
    return command
