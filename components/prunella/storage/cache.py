"""A bounded local copy of a bucket's objects, for what must be a file: token shards, tensors, sources.

A copy belongs to one version of an object, so it never goes stale, also where a bucket was emptied and used again; it is only
ever dropped, the longest unused first. Copies are not verified here: whoever reads proves the sha256, as everywhere.
"""

import hashlib
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from prunella.scratch import scratch_base

#: A copy used within this time stays, whatever the limit: somebody may be about to open it. Source: own choice 2026-11, longer
#: than a checkpoint takes to load.
_IN_USE_S = 3600.0
#: Bytes of copies kept. Source: own choice 2026-11, a few checkpoints of a small model; PRUNELLA_CACHE_BYTES sets another.
_LIMIT_BYTES = 8 * 2**30


def cache_limit_bytes() -> int:
    """How much may be kept."""
    return int(os.environ.get("PRUNELLA_CACHE_BYTES", _LIMIT_BYTES))


class ObjectCache:
    """Copies of one root's objects on this machine. Safe for several processes: a copy appears whole or not at all."""

    def __init__(self, root: str, *, limit_bytes: int) -> None:
        self._folder = scratch_base() / "objects" / hashlib.sha256(root.encode()).hexdigest()[:12]
        self._limit_bytes = limit_bytes

    def file(self, key: str, version: str, fetch: Callable[[Path], None]) -> Path:
        """The copy of an object as of a version; `fetch` writes it to the path it is given, if there is none yet."""
        path = self._folder / hashlib.sha256(version.encode()).hexdigest()[:16] / key
        try:
            os.utime(path)  # used now: the last to go
        except FileNotFoundError:
            self._add(path, fetch)
        return path

    def _add(self, path: Path, fetch: Callable[[Path], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_name(f".{uuid.uuid4().hex}")
        try:
            fetch(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        self._shrink()

    def _shrink(self) -> None:
        copies = [(status, path) for path in self._folder.rglob("*") if (status := _status(path)) is not None]
        size_bytes = sum(status.st_size for status, _ in copies)
        for status, path in sorted(copies, key=lambda copy: copy[0].st_mtime_ns):
            if size_bytes <= self._limit_bytes or time.time() - status.st_mtime < _IN_USE_S:
                return
            path.unlink(missing_ok=True)
            size_bytes -= status.st_size


def _status(path: Path) -> os.stat_result | None:
    """Of a file that is still there; another process may be shrinking too."""
    try:
        return path.stat() if path.is_file() else None
    except FileNotFoundError:
        return None
