"""The object store: immutable keys, one conditional write, bounded patience.

The only write is `put_new`, which fails if the key exists; one object is atomic, nothing larger. `FolderStore` keeps the
promise with a temporary file, fsync, hard link and an fsync of the directory. `RetryingStore` waits out a store that does
not answer, with jitter and a bound, and remembers when it had to. Nothing here interprets what it stores.
"""

import contextlib
import errno
import logging
import os
import random
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from prunella.config import StorageConfig
from prunella.errors import ConfigError, KeyExists, KeyMissing, StorageFull, StorageUnavailable

logger = logging.getLogger(__name__)
T = TypeVar("T")

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]*(/[A-Za-z0-9][A-Za-z0-9._=-]*)*")
_TEMPORARY = ".tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Store(Protocol):
    """What Prunella asks of an object store. Keys are `a/b/c`; content is bytes."""

    @property
    def root(self) -> str:
        """The root as given on the command line."""

    def put_new(self, key: str, data: bytes) -> None:
        """Write once. Raises KeyExists, StorageUnavailable, StorageFull."""

    def put_new_file(self, key: str, path: Path) -> None:
        """Write the content of a local file once. Raises as `put_new`."""

    def get(self, key: str) -> bytes:
        """Raises KeyMissing, StorageUnavailable."""

    def exists(self, key: str) -> bool:
        """Raises StorageUnavailable: not seeing is not absence."""

    def size_bytes(self, key: str) -> int:
        """Raises KeyMissing, StorageUnavailable."""

    def list(self, prefix: str) -> list[str]:
        """Names directly under `prefix`, sorted. For discovery and clean-up, never for truth."""

    def local_path(self, key: str) -> Path:
        """A local file that holds the object, to map into memory. Not verified. Raises KeyMissing."""

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


class FolderStore:
    """A store in a local folder. Safe for several processes on one file system.

    Only opening an experiment makes the folder; to everybody else its absence means that the store is away, not empty.
    """

    def __init__(self, root: str) -> None:
        self._root = Path(root).absolute()

    @property
    def root(self) -> str:
        return str(self._root)

    def put_new(self, key: str, data: bytes) -> None:
        self._commit(key, lambda temporary: temporary.write_bytes(data))

    def put_new_file(self, key: str, path: Path) -> None:
        self._commit(key, lambda temporary: shutil.copyfile(path, temporary))

    def get(self, key: str) -> bytes:
        with self._translated(key):
            return self._path(key).read_bytes()

    def exists(self, key: str) -> bool:
        with self._translated(key):
            return self._path(key).exists() or self._check_root()

    def size_bytes(self, key: str) -> int:
        with self._translated(key):
            return self._path(key).stat().st_size

    def list(self, prefix: str) -> list[str]:
        with self._translated(prefix):
            folder = self._path(prefix)
            names = os.listdir(folder) if folder.is_dir() else []
        return sorted(name for name in names if not name.startswith(_TEMPORARY))

    def local_path(self, key: str) -> Path:
        path = self._path(key)
        if not self.exists(key):
            raise KeyMissing(f"{self._root}: no object {key!r}")
        return path

    def delete(self, key: str) -> None:
        with self._translated(key):
            self._path(key).unlink(missing_ok=True)

    def set_aside(self, key: str) -> str:
        target = f"set-aside/{key}.{time.time_ns()}"
        with self._translated(key):
            self._make_folder(self._path(target).parent)
            os.rename(self._path(key), self._path(target))
        return target

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _commit(self, key: str, write: Callable[[Path], object]) -> None:
        final = self._path(key)
        temporary = final.parent / f"{_TEMPORARY}-{uuid.uuid4().hex}"
        with self._translated(key):
            self._make_folder(final.parent)
            try:
                write(temporary)
                _fsync(temporary)
                os.link(temporary, final)
                _fsync(final.parent)
            finally:
                temporary.unlink(missing_ok=True)

    def _make_folder(self, folder: Path) -> None:
        """Make a folder below the root, level by level: a root that went away a moment ago must not come back empty."""
        if folder == self._root or folder.is_dir():
            return
        self._make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()

    def _check_root(self) -> bool:
        """False, for an object that is not there under a root that is."""
        if not self._root.is_dir():
            raise StorageUnavailable(f"{self._root}: the root is not there; mount it, or correct --root")
        return False

    @contextlib.contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileExistsError as error:
            raise KeyExists(f"{self._root}: object {key!r} exists already and is immutable") from error
        except FileNotFoundError as error:
            self._check_root()
            raise KeyMissing(f"{self._root}: no object {key!r}") from error
        except OSError as error:
            if error.errno in _FULL:
                raise StorageFull(
                    f"{self._root}: no room for object {key!r} ({error.strerror}); free space and run again"
                ) from error
            raise StorageUnavailable(f"{self._root}: object {key!r} is out of reach ({error.strerror or error})") from error


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """A stretch of time in which the store did not answer and a call waited for it."""

    start_ns: int
    end_ns: int
    message: str


class RetryingStore:
    """Waits out `StorageUnavailable` with exponential, jittered delays up to `settings.retry_s` a call.

    A put whose first answer was lost finds its own object on the second try: equal content is success.
    """

    def __init__(self, inner: Store, settings: StorageConfig) -> None:
        self._inner = inner
        self._settings = settings
        self.waits: list[Wait] = []

    @property
    def root(self) -> str:
        return self._inner.root

    def put_new(self, key: str, data: bytes) -> None:
        self._put(key, lambda: self._inner.put_new(key, data), lambda: self._inner.get(key) == data)

    def put_new_file(self, key: str, path: Path) -> None:
        self._put(key, lambda: self._inner.put_new_file(key, path), lambda: self._inner.get(key) == path.read_bytes())

    def get(self, key: str) -> bytes:
        return self._call(key, lambda: self._inner.get(key))

    def exists(self, key: str) -> bool:
        return self._call(key, lambda: self._inner.exists(key))

    def size_bytes(self, key: str) -> int:
        return self._call(key, lambda: self._inner.size_bytes(key))

    def list(self, prefix: str) -> list[str]:
        return self._call(prefix, lambda: self._inner.list(prefix))

    def local_path(self, key: str) -> Path:
        return self._call(key, lambda: self._inner.local_path(key))

    def delete(self, key: str) -> None:
        self._call(key, lambda: self._inner.delete(key))

    def set_aside(self, key: str) -> str:
        return self._call(key, lambda: self._inner.set_aside(key))

    def _put(self, key: str, put: Callable[[], None], is_mine: Callable[[], bool]) -> None:
        tries = 0

        def attempt() -> None:
            nonlocal tries
            tries += 1
            try:
                put()
            except KeyExists:
                if tries == 1 or not is_mine():
                    raise

        self._call(key, attempt)

    def _call(self, key: str, call: Callable[[], T]) -> T:
        start_ns = time.time_ns()
        delay_s = self._settings.first_delay_s
        last: StorageUnavailable | None = None
        while True:
            try:
                result = call()
            except StorageUnavailable as error:
                if time.time_ns() - start_ns > self._settings.retry_s * 1e9:
                    raise StorageUnavailable(f"{error}; gave up after {self._settings.retry_s:g} s") from error
                logger.warning("storage_call_retried key=%s delay_s=%.2f error=%s", key, delay_s, error)
                last = error
                time.sleep(random.uniform(0.5, 1.0) * delay_s)
                delay_s = min(2 * delay_s, self._settings.max_delay_s)
            else:
                if last is not None:
                    self.waits.append(Wait(start_ns=start_ns, end_ns=time.time_ns(), message=str(last)))
                return result


def open_store(root: str) -> FolderStore:
    """The store behind a `--root`.

    Raises:
        ConfigError: the root names a kind of store this version does not have.
    """
    scheme, separator, _ = root.partition("://")
    if separator:
        raise ConfigError(f"--root {root}: {scheme} roots are not supported yet; give a local folder")
    return FolderStore(root)


def create_root(root: str) -> None:
    """Make the folder behind a `--root`, if it is a folder and absent. Called where an experiment is opened, nowhere else.

    Raises:
        ConfigError: there is a file in its place, or it may not be made.
    """
    if "://" in root:
        return
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--root {root}: cannot be made a folder ({error.strerror}); choose another") from error
