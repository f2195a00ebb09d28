"""The local, mutable, disposable folder of an attempt: process files, heartbeats, live metrics, logs.

Nothing here is truth, and nothing here survives on purpose: what matters ships to the ledger. The base is the environment
variable PRUNELLA_SCRATCH, else a folder of this user's under the system's temporary folder.
"""

import hashlib
import os
import tempfile
from pathlib import Path


def scratch_base() -> Path:
    """Folder under which every attempt of this machine has its own."""
    chosen = os.environ.get("PRUNELLA_SCRATCH")
    return Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"prunella-{os.getuid()}"


def attempt_scratch(root: str, experiment: str, segment: int, attempt: int, *, opened_ns: int) -> Path:
    """The attempt's folder on this machine, created if absent.

    Two roots never share one. Nor do two attempts of the same number in two lives of a root, one that was deleted or
    restored and used again: `opened_ns`, when the attempt was opened, tells them apart.
    """
    return _folder(root, experiment, segment, f"{attempt:02d}-{opened_ns:x}")


def run_scratch(root: str, experiment: str, segment: int, run_index: int, *, opened_ns: int) -> Path:
    """The folder of a segment's run for what belongs to no attempt, created if absent."""
    return _folder(root, experiment, segment, f"run-{run_index:02d}-{opened_ns:x}")


def _folder(root: str, experiment: str, segment: int, name: str) -> Path:
    mark = hashlib.sha256(root.encode()).hexdigest()[:12]
    path = scratch_base() / mark / experiment / f"{segment:04d}" / name
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def write_atomically(path: Path, text: str) -> None:
    """Replace a scratch file so that a reader sees the old or the new text, never half of one. A failure leaves no file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
