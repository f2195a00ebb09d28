"""`prunella checkpoint`: list, verify, digest, promote and prune what an experiment has saved."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from prunella.cli_options import Experiment, Root, ledger_of, out
from prunella.errors import CheckpointInvalid, ConfigError

if TYPE_CHECKING:
    from prunella.checkpoint_history import CheckpointStatus
    from prunella.ledger import Ledger

app = typer.Typer(no_args_is_help=True, help="List, verify, digest, promote and prune checkpoints.")

Step = Annotated[int | None, typer.Option(help="Optimizer step of the checkpoint; the last verified one by default.")]


@app.command("list")
def checkpoint_list(root: Root, experiment: Experiment = None) -> None:
    """Every checkpoint and what became of it."""
    from prunella.checkpoint_history import list_checkpoints

    table = Table("name", "step", "state", "promoted", "digest")
    for found in list_checkpoints(ledger_of(root, experiment)):
        promoted = "yes" if found.is_promoted else ""
        table.add_row(found.manifest.name, str(found.manifest.step), found.state, promoted, (found.digest or "")[:19])
    out.print(table)


@app.command("digest")
def checkpoint_digest(root: Root, experiment: Experiment = None, step: Step = None) -> None:
    """Digest of a checkpoint's logical content, computed from its files; of a pruned one, as validation recorded it."""
    from prunella import checkpoints

    ledger = ledger_of(root, experiment)
    found = _checkpoint(ledger, step)
    if found.state == "pruned":
        print(f"prunella: checkpoint {found.manifest.name} is pruned; this is what validation recorded", file=sys.stderr)
        print(found.digest)
        return
    tensors, state = checkpoints.read_full(ledger, found.ref)
    print(checkpoints.logical_digest(tensors, state))


@app.command("verify")
def checkpoint_verify(root: Root, experiment: Experiment = None, step: Step = None) -> None:
    """Read a checkpoint again: files, digests, and the digest that validation recorded."""
    from prunella import checkpoints

    ledger = ledger_of(root, experiment)
    ref = _checkpoint(ledger, step).ref
    tensors, state = checkpoints.read_full(ledger, ref)
    found, verdict = checkpoints.logical_digest(tensors, state), ledger.validation(ref.name)
    if verdict is not None and verdict.digest is not None and verdict.digest != found:
        raise CheckpointInvalid(
            f"checkpoint {ref.name}: expected the digest that validation recorded, {verdict.digest}, found {found}; it is not "
            "what was accepted: do not build on it, verify an older one (`prunella checkpoint list`, then --step)"
        )
    print(f"{ref.name} step {ref.step}: {found}")


@app.command("promote")
def checkpoint_promote(
    root: Root,
    reason: Annotated[str, typer.Option(help="Why it is accepted although it fell behind; kept beside it.")],
    experiment: Experiment = None,
    step: Annotated[
        int | None, typer.Option(help="Step with which an accepted segment ended; the last such by default.")
    ] = None,
) -> None:
    """Accept a checkpoint whose evaluation shows a regression: the segments after it are compared with it."""
    from prunella.orchestration.promoting import promote_by_hand

    print(promote_by_hand(ledger_of(root, experiment), step=step, reason=reason))


@app.command("prune")
def checkpoint_prune(
    root: Root,
    experiment: Experiment = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Delete what retention releases; never the last verified checkpoint."""
    from prunella.checkpoint_history import prune

    ledger = ledger_of(root, experiment)
    settings = ledger.config().checkpoint
    for status in prune(ledger, keep_last=settings.keep_last, keep_every=settings.keep_every, is_dry_run=dry_run):
        print(status.manifest.name)


def _checkpoint(ledger: "Ledger", step: int | None) -> "CheckpointStatus":
    """The last verified checkpoint; of a given step, the best there is: verified, then unjudged, then pruned."""
    from prunella.checkpoint_history import list_checkpoints

    ranks = {"verified": 3, "candidate": 2, "rejected": 1, "revoked": 1, "pruned": 0}
    found = [entry for entry in list_checkpoints(ledger) if _is_meant(entry, step)]
    if not found:
        wanted = "verified checkpoint" if step is None else f"checkpoint of step {step}"
        raise ConfigError(f"experiment {ledger.name!r} has no {wanted}; `prunella checkpoint list` shows what it has")
    return max(found, key=lambda entry: (entry.manifest.step, ranks[entry.state], entry.manifest.attempt))


def _is_meant(entry: "CheckpointStatus", step: int | None) -> bool:
    if step is None:
        return entry.state == "verified"
    return entry.manifest.step == step and (entry.state != "pruned" or entry.digest is not None)
