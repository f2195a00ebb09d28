"""What Prunella asks of an object store, and what a key may look like. Content is bytes; nothing here interprets it."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prunella.errors import ConfigError, StorageUnavailable

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
        """A local file that holds the object, to map into memory. Not verified. Raises KeyMissing."""

    def measure(self, key: str) -> Content:
        """What is in the file that `local_path` gives, hashed while it is fetched. Raises KeyMissing."""

    def drop_copy(self, key: str) -> bool:
        """Forget the fetched or kept copy of an object; whether there was one, so that another look may find something else."""

    def limit_copies(self, prefix: str, *, newest: int) -> None:
        """Of the copies of objects in folders under `prefix`, leave those in the `newest` last by name, and those in use."""

    def delete(self, key: str) -> None:
        """Remove an object that retention released; absent is fine."""

    def set_aside(self, key: str) -> str:
        """Move a damaged object out of the way, so that it can be written again; returns where it went."""


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
        return Content(size_bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
