"""A bounded local copy of a bucket's objects, for what must be a file: token shards, tensors, sources.

A copy belongs to one version of an object, so it never goes stale, also where a bucket was emptied and used again; it is only
ever dropped, the longest unused first. A file that was just put may become the copy of what was put. Copies are not verified
here: whoever reads proves the sha256, as everywhere.

Processes that want the same copy at once fetch it once: one of them does, and the others share what comes of it.

The limit holds whoever reads: only the copy that was just fetched is spared, because it was asked for. To drop one that
somebody has open, mapped or placed under a name of his own takes nothing from him, and whoever had not come to open it fetches
it again (`store.with_local_file`); so nobody has to say that he reads. But the disk keeps what he has: beyond the limit and
what is being fetched, it holds what readers map (`data/reader.py` says how little) and what is placed.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path

from prunella.errors import ConfigError, StorageFull, StorageUnavailable
from prunella.scratch import make_folder, scratch_base
from prunella.storage.parts import identity_of
from prunella.storage.store import is_full

#: A copy used within this time stays when those of older candidates go: somebody may want it again. A file of a fetch that was
#: not written to for so long is a leftover, as is its lock. Source: own choice 2026-11, longer than a checkpoint takes to load.
_IN_USE_S = 3600.0
#: Bytes of copies kept. Source: own choice 2026-11, a few checkpoints of a small model; PRUNELLA_CACHE_BYTES sets another.
_LIMIT_BYTES = 8 * 2**30


def cache_limit_bytes() -> int:
    """How much may be kept.

    Raises:
        ConfigError: PRUNELLA_CACHE_BYTES is no number of bytes.
    """
    chosen = os.environ.get("PRUNELLA_CACHE_BYTES") or str(_LIMIT_BYTES)
    if not re.fullmatch("[0-9]+", chosen):
        raise ConfigError(
            f"PRUNELLA_CACHE_BYTES: expected a whole number of bytes, found {chosen!r}; write it out (8 GiB are {8 * 2**30})"
        )
    return int(chosen)


class ObjectCache:
    """Copies of one root's objects on this machine. Safe for several processes: a copy appears whole or not at all."""

    def __init__(self, root: str, *, limit_bytes: int) -> None:
        self._folder = scratch_base() / "objects" / hashlib.sha256(root.encode()).hexdigest()[:12]
        self.limit_bytes = limit_bytes

    def file(self, key: str, version: str, fetch: Callable[[Path], None]) -> Path:
        """The copy of an object as of a version; `fetch` writes it to the path it is given, if there is none yet.

        Raises:
            StorageUnavailable: another process was fetching it, and could not.
            StorageFull: this machine has no room for it.
        """
        path = self._path(key, version)
        try:
            make_folder(path.parent)
            if _is_marked_used(path):
                return path
            self._fetch_once(path, fetch)
        except OSError as error:
            if not is_full(error):
                raise
            raise StorageFull(
                f"{self._folder}: no room on this machine for a copy of object {key!r} ({error.strerror}); free space there, "
                "or set PRUNELLA_SCRATCH to a folder on a larger disk"
            ) from error
        self._shrink(spared=path)
        return path

    def adopt(self, key: str, version: str, path: Path) -> None:
        """Take a file as the copy of an object as of a version: a second name for it where one file system holds both.

        Nobody has used it yet, so the limit applies to it at once.
        """
        unused_since = time.time() - _IN_USE_S

        def link(copy: Path) -> None:
            link_or_copy(path, copy)
            os.utime(copy, (unused_since, unused_since))

        copy = self._path(key, version)
        make_folder(copy.parent)
        self._add(copy, link)
        self._shrink()

    def drop(self, key: str) -> bool:
        """Forget every copy of an object; whether there was one."""
        copies = list(self._folder.glob(f"*/{key}"))
        for copy in copies:
            copy.unlink(missing_ok=True)
        return bool(copies)

    def limit(self, prefix: str, *, newest: int) -> None:
        """Of the folders under `prefix`, leave the copies in the `newest` last by name, and those in use."""
        copies = list(self._folder.glob(f"*/{prefix}/*/*"))
        names = sorted({copy.parent.name for copy in copies}, reverse=True)
        for copy in copies:
            if copy.parent.name in names[newest:] and not _is_in_use(_status(copy)):
                copy.unlink(missing_ok=True)

    def _path(self, key: str, version: str) -> Path:
        return self._folder / hashlib.sha256(version.encode()).hexdigest()[:16] / key

    def _fetch_once(self, path: Path, fetch: Callable[[Path], None]) -> None:
        """Fetch a copy under its lock, or share what came of it where another process held that.

        Whoever is killed leaves the lock's file and loses the lock, and the next fetches; whoever ends removes the file first.
        To share a failure rather than repeat it keeps a store's silence as short as it is for one process: those that wait
        do not try in turn.
        """
        lock_path = path.with_name(f".{path.name}.lock")
        with lock_path.open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            is_ours = _is_at(lock_path, lock.fileno())
            try:
                if _is_marked_used(path):
                    return
                if not is_ours:
                    raise StorageUnavailable(
                        f"{path}: expected the copy that another process was fetching, found that its fetch failed; try again"
                    )
                self._add(path, fetch)
            finally:
                if is_ours:
                    lock_path.unlink(missing_ok=True)

    def _add(self, path: Path, fetch: Callable[[Path], None]) -> None:
        temporary = path.with_name(f".{uuid.uuid4().hex}")
        try:
            fetch(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _shrink(self, *, spared: Path | None = None) -> None:
        """Drop the longest unused copies until the rest is within the limit."""
        copies = [(status, path) for path in self._folder.rglob("*") if (status := _status(path)) is not None]
        size_bytes = sum(status.st_size for status, _ in copies)
        for status, path in sorted(copies, key=lambda copy: _used_ns(copy[0])):
            if size_bytes <= self.limit_bytes:
                return
            if path == spared or _is_being_fetched(path, status):
                continue
            path.unlink(missing_ok=True)
            size_bytes -= status.st_size


def open_again(path: Path, identity: tuple[int, ...]) -> BufferedReader | None:
    """The copy at a path, open, and used now; None unless it is still that very file, as it was (`identity_of`)."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    if identity_of(file.fileno()) != identity:
        file.close()
        return None
    _mark_used(file.fileno())
    return file


def link_or_copy(path: Path, target: Path) -> None:
    """A second name for a file where one file system holds both, else a copy of it."""
    try:
        os.link(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copyfile(path, target)


def _is_being_fetched(path: Path, status: os.stat_result) -> bool:
    """Not yet a copy, and not what a killed process has left of one. No key begins with a dot."""
    return path.name.startswith(".") and _is_in_use(status)


def _is_in_use(status: os.stat_result | None) -> bool:
    return status is not None and time.time() - _used_ns(status) / 1e9 < _IN_USE_S


def _used_ns(status: os.stat_result) -> int:
    """When a file was used last, or is still written to."""
    return max(status.st_atime_ns, status.st_mtime_ns)


def _is_marked_used(path: Path) -> bool:
    """False where there is no copy."""
    with contextlib.suppress(FileNotFoundError):
        _mark_used(path)
        return True
    return False


def _mark_used(file: Path | int) -> None:
    """Used now: the last to go. When it was written stays, for that is how a reader knows what he has proven."""
    os.utime(file, ns=(time.time_ns(), os.stat(file).st_mtime_ns))


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file still has that name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _status(path: Path) -> os.stat_result | None:
    """Of a file that is still there; another process may be shrinking too."""
    try:
        return path.stat() if path.is_file() else None
    except FileNotFoundError:
        return None
