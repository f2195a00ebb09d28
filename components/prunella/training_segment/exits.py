"""How each rank ended, in its own words: one file a rank, written as the rank's last act.

A rank that left no file did not end on purpose; the launcher reads absence together with what became of the process.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from prunella import codec
from prunella.errors import ConfigError
from prunella.records import Failure, Outage
from prunella.redaction import redacted_words
from prunella.scratch import write_atomically
from prunella.training_segment.failures import classify, is_peer_loss
from prunella.training_segment.heartbeat import Pulse


@dataclass(frozen=True, kw_only=True, slots=True)
class ExitNote:
    """A rank's last word. `failure` is None when it ended as it should; `is_peer_loss` when it failed because another did."""

    rank: int
    node: str
    step: int
    phase: str
    at_ns: int
    exit_code: int
    last_step: int
    is_stopped: bool = False
    failure: Failure | None = None
    is_peer_loss: bool = False
    outages: tuple[Outage, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(kw_only=True, slots=True)
class Ending:
    """What a rank knows when it ends, besides a failure. Filled in while it trains, so that a failure loses none of it."""

    last_step: int
    is_stopped: bool = False
    outages: list[Outage] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def note_path(folder: Path, rank: int) -> Path:
    """File of a rank's exit note."""
    return folder / f"rank-{rank:03d}.exit.json"


def write_note(folder: Path, pulse: Pulse, ending: Ending, *, rank: int, node: str, error: BaseException | None) -> ExitNote:
    """Leave the exit note of this rank, whose training raised `error` or ended."""
    note = ExitNote(
        rank=rank,
        node=node,
        step=pulse.step,
        phase=pulse.phase.value,
        at_ns=time.time_ns(),
        exit_code=0 if error is None else 1,
        last_step=ending.last_step,
        is_stopped=ending.is_stopped,
        failure=None if error is None else classify(error, rank=rank, node=node, step=pulse.step),
        is_peer_loss=error is not None and is_peer_loss(error),
        outages=tuple(ending.outages),
        warnings=tuple(ending.warnings),
    )
    write_atomically(note_path(folder, rank), json.dumps(redacted_words(codec.encode(note))))
    return note


def read_note(folder: Path, rank: int) -> ExitNote | None:
    """The exit note of a rank; None while there is none."""
    path = note_path(folder, rank)
    try:
        return codec.decode(ExitNote, json.loads(path.read_text()), str(path))
    except (FileNotFoundError, json.JSONDecodeError, ConfigError):
        return None
