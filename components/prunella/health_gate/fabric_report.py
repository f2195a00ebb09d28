"""What one rank of the fabric check leaves in scratch: a heartbeat, and what it found so far.

Both files are replaced atomically, so the stage reads a whole report at any moment, also of a rank that died or hangs.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from prunella.codec import canonical_json, decode
from prunella.scratch import write_atomically


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One exchange as a rank saw it. `wrong_from` lists the ranks whose data arrived wrong; `wrong` counts elements."""

    name: str
    duration_ms: float
    wrong: int = 0
    wrong_from: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RankReport:
    """What a rank found so far. `error` is what stopped it, empty while nothing did."""

    rank: int
    node: str
    backend: str = ""
    steps: tuple[StepReport, ...] = ()
    is_finished: bool = False
    error: str = ""


def write_report(folder: Path, report: RankReport) -> None:
    """Replace the rank's report."""
    write_atomically(folder / f"report-{report.rank}.json", canonical_json(report).decode())


def read_report(folder: Path, rank: int) -> RankReport | None:
    """The rank's newest report; None when it wrote none."""
    path = folder / f"report-{rank}.json"
    return decode(RankReport, json.loads(path.read_text()), path.name) if path.exists() else None


def arrive(folder: Path, rank: int) -> None:
    """Say that the rank is there, once, and alive."""
    write_atomically(folder / f"arrived-{rank}", str(time.time_ns()))
    beat(folder, rank)


def arrived_ns(folder: Path, rank: int) -> int | None:
    """When the rank arrived; None when it never did."""
    return _read_ns(folder / f"arrived-{rank}")


def beat(folder: Path, rank: int) -> None:
    """Say that the rank is alive now."""
    write_atomically(folder / f"beat-{rank}", str(time.time_ns()))


def last_beat_ns(folder: Path, rank: int) -> int | None:
    """When the rank was last alive; None when it never arrived."""
    return _read_ns(folder / f"beat-{rank}")


def _read_ns(path: Path) -> int | None:
    return int(path.read_text()) if path.exists() else None
