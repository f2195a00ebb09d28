"""What Prunella asks of an object store, and what a key may look like. Content is bytes; nothing here interprets it.

A local file of an object is a bucket's copy or a folder's object. A copy may be dropped at any moment, by any process of this
machine: whoever opens one does so through `with_local_file`, which fetches it again, and whoever hands its path on lets the
store `place` it under a name of its own.
"""

import contextlib
import errno
import hashlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from prunella.errors import ConfigError, StorageUnavailable

T = TypeVar("T")

#: How often a copy that was dropped before it could be opened is asked for. Source: own choice 2026-11: between the two lie
#: microseconds, so that a second time in a row means a disk for copies that is far too small.
LOOKS = 3
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]*(/[A-Za-z0-9][A-Za-z0-9._=-]*)*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    """When the store says that an object was written. The true moment lies within `grain_ns` of `at_ns`."""

    at_ns: int
    grain_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What an object holds, as far as it takes to know it again."""

    size_bytes: int
    sha256: str


class TransferCut(StorageUnavailable):
    """The store stopped in the middle of a file, and what had arrived by then counts: the next try goes on from there."""


class Store(Protocol):
    """What Prunella asks of an object store. Keys are `a/b/c`; content is bytes."""

    @property
    def root(self) -> str:
        """The root as given on the command line."""

    @property
    def moves(self) -> int:
        """Changes with every sign of life: an answer, a try, a part of a file that went on its way. Only to be compared with
        itself: threads that count at once may count one of two."""

    @property
    def copies_limit_bytes(self) -> int | None:
        """How much of the store this machine keeps as local copies; None where local files are the objects themselves."""

    def put_new(self, key: str, data: bytes) -> None:
        """Write once. Raises KeyExists, StorageUnavailable, StorageFull."""

    def put_new_file(self, key: str, path: Path, *, keep_copy: bool = False) -> Content:
        """Write the content of a local file once; returns what that is, hashed meanwhile. Raises as `put_new`.

        Args:
            keep_copy: the file is not changed any more, only removed: where `local_path` would fetch the object, the store
                may keep the file as its copy.
        """

    def get(self, key: str) -> bytes:
        """Raises KeyMissing, StorageUnavailable."""

    def exists(self, key: str) -> bool:
        """Raises StorageUnavailable: not seeing is not absence."""

    def size_bytes(self, key: str) -> int:
        """Raises KeyMissing, StorageUnavailable."""

    def stamp(self, key: str) -> Stamp:
        """When an object was written, by the store's clock. Raises KeyMissing, StorageUnavailable."""

    def list(self, prefix: str) -> list[str]:
        """Names directly under `prefix`, sorted. For discovery and clean-up, never for truth."""

    def local_path(self, key: str) -> Path:
        """A local file that holds the object, to be opened at once (`with_local_file`). Not verified. Raises KeyMissing."""

    def place(self, key: str, path: Path) -> Content | None:
        """Give the local file of an object the name `path`, under which it stays whatever becomes of copies.

        Returns what is in it where it was fetched for that, since nobody has proven it yet; None where it was there before.
        Raises KeyMissing.
        """

    def measure(self, key: str) -> Content:
        """What is in the file that `local_path` gives, hashed while it is fetched. Raises KeyMissing."""

    def drop_copy(self, key: str) -> bool:
        """Forget the fetched or kept copy of an object; whether there was one, so that another look may find something else."""

    def limit_copies(self, prefix: str, *, newest: int) -> None:
        """Of the copies of objects in folders under `prefix`, leave those in the `newest` last by name, and those in use."""

    def delete(self, key: str) -> None:
        """Remove an object that retention released; absent is fine."""

    def give_up(self, key: str) -> None:
        """Forget what puts of this object that failed have left of it, for nobody tries again. Raises nothing."""

    def clear_unfinished(self, prefix: str, is_dead: Callable[[str], bool]) -> tuple[str, ...]:
        """Forget what died with those who were writing objects under `prefix`; returns the keys. For clean-up only.

        Args:
            is_dead: told a key; whether nobody may write there any more. What somebody may still finish stays.
        """

    def set_aside(self, key: str, target: str | None = None) -> str:
        """Move a damaged object out of the way, so that it can be written again; returns where it went.

        Args:
            target: where to, for a caller that repeats the call: what an earlier try has moved there already is success.

        Raises KeyMissing, StorageUnavailable.
        """


def check_key(key: str) -> str:
    """`key`, if it is one.

    Raises:
        ConfigError: it is empty, climbs out of the root, or holds characters some store would mangle.
    """
    if not _KEY.fullmatch(key):
        raise ConfigError(f"object key {key!r}: expected parts of letters, digits, '.', '_', '=' and '-' joined by '/'")
    return key


def content_of(path: Path) -> Content:
    """What a local file holds."""
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size  # not `path.stat()`: the name may be gone by now
        return Content(size_bytes=size_bytes, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def is_full(error: BaseException) -> bool:
    """Whether a disk, a quota or a limit on files has no room for what was written."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def aside(key: str) -> str:
    """A new place for a damaged object."""
    return f"set-aside/{key}.{time.time_ns()}"


def with_local_file(store: Store, key: str, use: Callable[[Path], T]) -> T:
    """What `use` makes of an object's local file. A copy that is dropped before `use` has opened it is fetched again.

    Once it is open it may be dropped: Linux keeps what is open or mapped.

    Raises:
        KeyMissing, StorageUnavailable: as `local_path`.
    """
    for _ in range(LOOKS):
        with contextlib.suppress(FileNotFoundError):
            return use(store.local_path(key))
    raise dropped_too_soon(store.root, key)


def dropped_too_soon(root: str, key: str) -> StorageUnavailable:
    return StorageUnavailable(
        f"{root}: object {key!r}: expected to open its local copy, found it dropped {LOOKS} times in a row; "
        "raise PRUNELLA_CACHE_BYTES"
    )
