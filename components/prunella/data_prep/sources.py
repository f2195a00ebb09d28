"""Which files a corpus consists of, in an order that every machine agrees on.

An input is a file, a glob, a folder (all regular files below it that are not hidden, those of linked folders too),
`store:KEY` (an object, or all below a prefix of the root's own store), or `builtin:stdlib` (the source text of the running
Python's standard library). Decides names and order only; opens nothing, and fetches nothing from a bucket before somebody
reads it. A file's label is the input as written plus the path below it, so that two machines with the same configuration name
the same file alike; bytes of a name that are no UTF-8 are written out in it, because labels stand in records.
"""

import glob
import heapq
import os
import stat
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from prunella.config import DataConfig
from prunella.errors import ConfigError
from prunella.storage import Store, with_local_file

T = TypeVar("T")

STDLIB = "builtin:stdlib"
STORE_SCHEME = "store:"
#: Where the source text of the standard library lies, for a data prep that runs under another Python than its launcher.
STDLIB_VARIABLE = "PRUNELLA_STDLIB"
_NOT_STDLIB = ("site-packages", "dist-packages", "__pycache__")
#: No access or a name too long; no such user's home; a name that no file can have.
_CANNOT_LOOK = (OSError, RuntimeError, ValueError)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSource:
    """A file of this machine, and what to call it when it cannot be read."""

    label: str
    path: Path

    @property
    def suffix(self) -> str:
        return self.path.suffix

    def problem(self) -> str | None:
        """Why it is no file that can be read, or None."""
        try:
            status = _status(self.path)
        except OSError as error:
            return f"cannot be looked at: {error.strerror}"
        is_file = status is not None and stat.S_ISREG(status.st_mode)
        return None if is_file else "expected a regular file that can be read"

    def holds_something(self) -> bool:
        """Whether it can be read and is not empty."""
        return self.problem() is None and os.access(self.path, os.R_OK) and self.path.stat().st_size > 0

    def use(self, how: Callable[[Path], T]) -> T:
        """What `how`, which opens the file, makes of it."""
        return how(self.path)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSource:
    """An object of the root's own store. Whether it is there, and how large, is asked of the store; reading it fetches it."""

    label: str
    key: str
    store: Store

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.key).suffix

    def problem(self) -> str | None:
        """None: the store has it."""
        return None

    def holds_something(self) -> bool:
        """Whether it is not empty."""
        return self.store.size_bytes(self.key) > 0

    def use(self, how: Callable[[Path], T]) -> T:
        """What `how`, which opens the file, makes of it. Raises KeyMissing, StorageUnavailable."""
        return with_local_file(self.store, self.key, how)


#: One file of the corpus.
Source = FileSource | StoredSource


def resolve_inputs(inputs: tuple[str, ...], store: Store) -> tuple[Source, ...]:
    """The files behind `inputs`, input by input, sorted within each.

    Raises:
        ConfigError: an input names nothing that exists, or cannot be looked at.
    """
    return tuple(source for name in inputs for source in _resolve(name, store))


def check_inputs(settings: DataConfig, store: Store) -> None:
    """Refuse, before anything is recorded, a corpus that cannot be one. Reads no text, and fetches none.

    Raises:
        ConfigError: an input or the tokenizer names nothing that exists or cannot be looked at, or no file behind the inputs
            holds anything.
    """
    name = settings.tokenizer
    if name is not None:
        _, status = locate("data.tokenizer", name)
        if status is None or not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"data.tokenizer: {name!r}: no such file; give a tokenizer.json, or none to train one")
    sources = resolve_inputs(settings.inputs, store)
    if not any(source.holds_something() for source in sources):
        raise ConfigError(
            f"data.inputs {list(settings.inputs)}: expected files with text, found {len(sources)} files, none of which is a "
            "regular file that can be read and is not empty; correct data.inputs or bring the corpus"
        )


def locate(setting: str, name: str) -> tuple[Path, os.stat_result | None]:
    """The path that a setting names, with `~` filled in, and the status of what is there; None where nothing is.

    Raises:
        ConfigError: it cannot be looked at.
    """
    try:
        path = Path(name).expanduser()
        return path, _status(path)
    except _CANNOT_LOOK as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise ConfigError(
            f"{setting}: {name!r}: cannot be looked at: {reason}; correct {setting}, or give this user access to it"
        ) from error


def _status(path: Path) -> os.stat_result | None:
    """What is there, links followed; None where nothing is. Raises OSError where it cannot be looked at."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _resolve(name: str, store: Store) -> list[Source]:
    if name == STDLIB:
        return _stdlib()
    if name.startswith("builtin:"):
        raise ConfigError(f"data.inputs: unknown built-in corpus {name!r}; there is {STDLIB!r}")
    if name.startswith(STORE_SCHEME):
        return _stored(name, store)
    path, status = locate("data.inputs", name)
    if status is None:
        return _glob(name)
    if stat.S_ISDIR(status.st_mode):
        return _folder(path, label=name.rstrip("/"))
    return [_file(name, path)]


def _file(name: str, path: Path) -> FileSource:
    """The file at `path`. Of a name that is no UTF-8, the label writes the bytes that are none out, as `\\xe9`."""
    return FileSource(label=os.fsencode(name).decode("utf-8", "backslashreplace"), path=path)


def _glob(name: str) -> list[Source]:
    matches = sorted(_matches(os.path.expanduser(name))) if glob.has_magic(name) else []
    if not matches:
        kind = "no file matches this glob" if glob.has_magic(name) else "no such file or folder"
        raise ConfigError(
            f"data.inputs: {name!r}: {kind} (working folder {os.getcwd()}); correct data.inputs or bring the corpus"
        )
    return [_file(match, Path(match)) for match in matches]


def _matches(pattern: str) -> set[str]:
    """Paths that a glob names, folders left out. `**` is each folder that `_walk` finds from there on."""
    parts = pattern.split("/")
    if "**" not in parts:
        return {match for match in glob.glob(pattern) if not os.path.isdir(match)}
    at = parts.index("**")
    top, rest = "/".join([*parts[:at], ""]), parts[at + 1 :]
    matches: set[str] = set()
    for start in glob.glob(top) if top else [""]:
        for folder in _walk(Path(start)):
            below = os.path.join(start, *folder.path.relative_to(start).parts)
            if folder.files is None:
                matches.add(below)
            elif rest:
                matches |= _matches(os.path.join(glob.escape(below), *rest))
            else:
                matches.update(os.path.join(below, file) for file in folder.files)
    return matches


def _folder(folder: Path, *, label: str, suffix: str = "", without: tuple[str, ...] = ()) -> list[Source]:
    found = (path for below in _walk(folder, without) for path in below.paths())
    relative = sorted((path.relative_to(folder) for path in found), key=lambda path: path.parts)
    wanted = [path for path in relative if path.name.endswith(suffix)]
    return [_file(f"{label}/{path.as_posix()}", folder / path) for path in wanted]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Folder:
    """A folder and the names of its visible files; None where it cannot be listed."""

    path: Path
    files: tuple[str, ...] | None

    def paths(self) -> list[Path]:
        """Its files; itself where it cannot be listed, to be refused as a file."""
        return [self.path] if self.files is None else [self.path / name for name in self.files]


def _walk(top: Path, without: tuple[str, ...] = ()) -> Iterator[_Folder]:
    """`top` and the visible folders below it, linked ones too, in no particular order.

    What lies below `top` itself comes under its own path, as if there were no links. A folder that only links lead to comes
    once, under the path with the fewest links, and of those the first by name: so links in circles end, and links never change
    the paths of what is there without them.
    """
    seen: set[tuple[int, int]] = set()
    unlisted: list[Path] = []
    starts = [(0, top)]
    while starts:
        n_links, start = heapq.heappop(starts)
        for parent, folders, files in os.walk(start, onerror=lambda error: unlisted.append(Path(error.filename))):
            is_new = _is_new(parent, seen)
            if n_links and not is_new:
                folders.clear()  # all below it was met, too
                continue
            folders[:] = [name for name in folders if name not in without and not name.startswith(".")]
            for path in (Path(parent, name) for name in folders):
                if os.path.islink(path):  # os.walk does not enter it
                    heapq.heappush(starts, (n_links + 1, path))
            yield _Folder(path=Path(parent), files=tuple(name for name in files if not name.startswith(".")))
    yield from (_Folder(path=path, files=None) for path in unlisted)


def _is_new(folder: str, seen: set[tuple[int, int]]) -> bool:
    """Whether a folder was not met under another path before; from now on, it was."""
    try:
        status = os.stat(folder)
    except OSError:  # gone since it was listed, and its files with it
        return True
    identity = (status.st_dev, status.st_ino)
    is_new = identity not in seen
    seen.add(identity)
    return is_new


def stdlib_folder() -> Path:
    """Where `builtin:stdlib` is read from."""
    return Path(os.environ.get(STDLIB_VARIABLE) or sysconfig.get_path("stdlib"))


def places(settings: DataConfig) -> tuple[Path, ...]:
    """Files and folders outside the store that a data prep reads: what must be within its reach wherever it runs."""
    return tuple(place for name in (*settings.inputs, settings.tokenizer) if name and (place := _place(name)) is not None)


def _place(name: str) -> Path | None:
    if name == STDLIB:
        return stdlib_folder()
    if name.startswith(STORE_SCHEME):
        return None
    try:
        path = Path(name).expanduser().absolute()
        while glob.has_magic(str(path)):
            path = path.parent
        return path if _status(path) is not None else None
    except _CANNOT_LOOK:  # the stage says so in its record
        return None


def _stdlib() -> list[Source]:
    sources = _folder(stdlib_folder(), label=STDLIB, suffix=".py", without=_NOT_STDLIB)
    if not sources:
        raise ConfigError(
            f"data.inputs: {STDLIB!r}: this Python keeps no source text in {stdlib_folder()}; "
            "set data.inputs to text files of your own"
        )
    return sources


def _stored(name: str, store: Store) -> list[Source]:
    keys = list(_stored_keys(name.removeprefix(STORE_SCHEME).strip("/"), store))
    if not keys:
        raise ConfigError(
            f"data.inputs: {name!r}: nothing under that key in {store.root}; correct data.inputs or bring the corpus"
        )
    return [StoredSource(label=f"{STORE_SCHEME}{key}", key=key, store=store) for key in keys]


def _stored_keys(key: str, store: Store) -> Iterator[str]:
    names = store.list(key)
    for below in names:
        yield from _stored_keys(f"{key}/{below}", store)
    if not names and store.exists(key):
        yield key
