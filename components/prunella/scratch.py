"""The local, mutable, disposable folder of an attempt: process files, heartbeats, live metrics, logs.

Nothing here is truth, and nothing here survives on purpose: what matters ships to the ledger. The base is the environment
variable PRUNELLA_SCRATCH, else a folder of this user's under the system's temporary folder. There anybody may have made one
first, under a name that all can guess, so it is used only where nobody else can write to it. Whoever sets PRUNELLA_SCRATCH
vouches for the folder himself: a pod's volume belongs to root and is open to all, and a link may well lead to a faster disk.
"""

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from prunella.errors import ConfigError

_VARIABLE = "PRUNELLA_SCRATCH"
_NEXT = f"set {_VARIABLE} to a folder of yours"


def scratch_base() -> Path:
    """Folder under which every attempt of this machine has its own. Whoever writes there comes by `make_folder`."""
    chosen = os.environ.get(_VARIABLE)
    return Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"prunella-{os.getuid()}"


def make_folder(path: Path) -> Path:
    """A folder in scratch, with the base and all above it that is absent, for their owner alone.

    Raises:
        ConfigError: the base cannot be made, or others could change what is in it.
    """
    base = scratch_base()
    try:
        _make(base)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(
            f"{base}: expected a folder for scratch, or room to make one, found none ({error.strerror}); {_NEXT}"
        ) from error
    if not os.environ.get(_VARIABLE):
        _check_is_ours(base)
    _make(path)
    return path


def _make(path: Path) -> None:
    """As `mkdir` with `parents`, which would make those with the mode that the umask leaves."""
    if not path.is_dir():
        _make(path.parent)
        path.mkdir(exist_ok=True, mode=0o700)


def _check_is_ours(base: Path) -> None:
    found = base.lstat()
    if stat.S_ISLNK(found.st_mode):
        what = f"a link to {base.readlink()}"
    elif found.st_uid != os.getuid():
        what = f"one of user {found.st_uid}"
    elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        what = f"one that others may write to ({stat.filemode(found.st_mode)})"
    else:
        return
    raise ConfigError(
        f"{base}: expected a folder that only user {os.getuid()} may write to, found {what}; remove it, or {_NEXT}"
    )


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
    return make_folder(scratch_base() / mark / experiment / f"{segment:04d}" / name)


def write_atomically(path: Path, text: str) -> None:
    """Replace a scratch file so that a reader sees the old or the new text, never half of one. A failure leaves no file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
