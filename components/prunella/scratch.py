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


def attempt_scratch(root: str, experiment: str, segment: int, attempt: int) -> Path:
    """The attempt's folder on this machine, created if absent. Two roots never share one."""
    mark = hashlib.sha256(root.encode()).hexdigest()[:12]
    path = scratch_base() / mark / experiment / f"{segment:04d}" / f"{attempt:02d}"
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def write_atomically(path: Path, text: str) -> None:
    """Replace a scratch file so that a reader sees the old or the new text, never half of one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
