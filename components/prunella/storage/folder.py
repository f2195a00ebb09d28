"""A store in a local folder: a temporary file, fsync, hard link, and an fsync of the directory make one object atomic."""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from prunella.errors import KeyExists, KeyMissing, StorageFull, StorageUnavailable
from prunella.storage.store import Content, Stamp, aside, check_key, content_of, is_full

_TEMPORARY = ".tmp"
#: File systems stamp with the tick of the kernel. Source: CONFIG_HZ is 100 at least, 2026-11.
_GRAIN_NS = 10_000_000
#: A file is copied in pieces of this size, each on disk before the next, so that whoever waits for a slow disk sees it move.
#: Source: own choice 2026-11, not tuned: 2 s of a disk that writes 32 MiB/s.
_PIECE_BYTES = 64 * 2**20


class FolderStore:
    """A store in a local folder. Safe for several processes on one file system.

    Only opening an experiment makes the folder; to everybody else its absence means that the store is away, not empty.
    """

    def __init__(self, root: str) -> None:
        self._root = Path(root).absolute()
        self.moves = 0

    @property
    def root(self) -> str:
        return str(self._root)

    @property
    def copies_limit_bytes(self) -> int | None:
        return None

    def put_new(self, key: str, data: bytes) -> None:
        self._commit(key, lambda temporary: temporary.write_bytes(data))

    def put_new_file(self, key: str, path: Path, *, keep_copy: bool = False) -> Content:
        self._commit(key, lambda temporary: self._copy(path, temporary))
        return content_of(path)

    def get(self, key: str) -> bytes:
        with self._translated(key):
            return self._path(key).read_bytes()

    def exists(self, key: str) -> bool:
        with self._translated(key):
            return self._path(key).exists() or self._check_root()

    def size_bytes(self, key: str) -> int:
        with self._translated(key):
            return self._path(key).stat().st_size

    def stamp(self, key: str) -> Stamp:
        with self._translated(key):
            return Stamp(at_ns=self._path(key).stat().st_mtime_ns, grain_ns=_GRAIN_NS)

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

    def place(self, key: str, path: Path) -> Content | None:
        path.symlink_to(self.local_path(key))
        return None  # the object itself: nothing was fetched

    def measure(self, key: str) -> Content:
        return content_of(self.local_path(key))

    def drop_copy(self, key: str) -> bool:
        return False  # the objects are files themselves

    def limit_copies(self, prefix: str, *, newest: int) -> None:
        return

    def delete(self, key: str) -> None:
        with self._translated(key):
            self._path(key).unlink(missing_ok=True)

    def give_up(self, key: str) -> None:
        return  # a put that fails takes its temporary file with it

    def clear_unfinished(self, prefix: str, is_dead: Callable[[str], bool]) -> tuple[str, ...]:
        """A temporary file does not say whose it is: `is_dead` is told its own key, beside that of the object."""
        with self._translated(prefix):
            found = {str(path.relative_to(self._root)): path for path in self._path(prefix).rglob(f"{_TEMPORARY}-*")}
            dead = tuple(key for key in sorted(found) if is_dead(key))
            for key in dead:
                found[key].unlink(missing_ok=True)
        return dead

    def set_aside(self, key: str, target: str | None = None) -> str:
        target = target or aside(key)
        with self._translated(key):
            if not self._path(target).exists():  # else an earlier try has moved it, and its answer was lost
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

    def _copy(self, path: Path, temporary: Path) -> None:
        with path.open("rb") as source, temporary.open("wb") as target:
            while len(piece := source.read(_PIECE_BYTES)) == _PIECE_BYTES:
                target.write(piece)
                target.flush()
                os.fdatasync(target.fileno())
                self.moves += 1
            target.write(piece)

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
            if is_full(error):
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
