"""The summary of an experiment as tables for people. Shows what the document says, and adds nothing to it."""

import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from prunella.orchestration.run import RunResult


def end_of_run(result: "RunResult") -> int:
    """Say how a command that ran an experiment ended; returns its exit code."""
    for spec in result.unfired:
        print(f"prunella: fault {spec} never fired", file=sys.stderr)
    print(f"prunella: {result.message}", file=sys.stderr)
    return 0 if result.is_good else 1


def show_summary(document: dict[str, Any], console: Console) -> None:
    """Print the document of `summary.json`; every cell is whole on a terminal of 80 columns."""
    for table in (_headline(document), _incidents(document), _accuracy(document), _time(document)):
        console.print(table)


def _headline(document: dict[str, Any]) -> Table:
    table = Table(title="experiment", show_header=False)
    for key in ("state", "segments", "attempts", "restarts", "steps", "tokens", "first_loss_nats", "final_loss_nats", "ettr"):
        value = document[key]
        table.add_row(key, f"{value:.4f}" if isinstance(value, float) else str(value))
    counts = document["checkpoints"]
    table.add_row("checkpoints", f"{counts['verified']} verified, {counts['rejected']} rejected")
    return table


def _incidents(document: dict[str, Any]) -> Table:
    """Causes and decisions stay on one line, because they are what a person looks for; culprits may wrap."""
    table = Table(title="incidents")
    table.add_column("cause", no_wrap=True)
    table.add_column("culprit")
    table.add_column("decision", no_wrap=True)
    for name in ("lost\nsteps", "recovery\ns"):
        table.add_column(name, justify="right")
    for incident in document["incidents"]:
        phases_s = incident["recovery_s"]
        recovery = f"{sum(phases_s.values()):.1f}" if phases_s else "none"
        culprit, lost = str(incident["culprit"] or "unknown"), str(incident["lost_steps"])
        table.add_row(incident["cause"], culprit, incident["decision"], lost, recovery)
    return table


def _accuracy(document: dict[str, Any]) -> Table:
    table = Table("task", title="accuracy of the newest evaluation")
    for name in ("accuracy", "95% interval", "chance", "n"):
        table.add_column(name, justify="right")
    for task, score in document["accuracy"].items():
        low, high = score["ci95"][0], score["ci95"][-1]
        table.add_row(task, f"{score['acc']:.3f}", f"{low:.3f} to {high:.3f}", f"{score['chance']:.3f}", str(score["n"]))
    return table


def _time(document: dict[str, Any]) -> Table:
    table = Table("part", title="where the time went")
    for name in ("s", "%"):
        table.add_column(name, justify="right")
    elapsed = document["time_s"]["elapsed"] or 1.0
    for part, seconds in sorted(document["time_s"].items(), key=lambda item: -item[1]):
        if seconds:
            table.add_row(part, f"{seconds:.1f}", f"{100 * seconds / elapsed:.1f}")
    return table
