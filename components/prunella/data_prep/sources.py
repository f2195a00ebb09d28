"""Which files a corpus consists of, in an order that every machine agrees on.

An input is a file, a glob, a folder (all regular files below it that are not hidden), `store:KEY` (an object, or all below
a prefix of the root's own store), or `builtin:stdlib` (the source text of the running Python's standard library). Decides
names and order only; opens nothing, and fetches nothing from a bucket before somebody reads it. A file's label is the input as
written plus the path below it, so that two machines with the same configuration name the same file alike.
"""

import glob
import os
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


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSource:
    """A file of this machine, and what to call it when it cannot be read."""

    label: str
    path: Path

    @property
    def suffix(self) -> str:
        return self.path.suffix

    def is_file(self) -> bool:
        return self.path.is_file()

    def holds_something(self) -> bool:
        """Whether it can be read and is not empty."""
        return self.path.is_file() and os.access(self.path, os.R_OK) and self.path.stat().st_size > 0

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

    def is_file(self) -> bool:
        return True

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
        ConfigError: an input names nothing that exists.
    """
    return tuple(source for name in inputs for source in _resolve(name, store))


def check_inputs(settings: DataConfig, store: Store) -> None:
    """Refuse, before anything is recorded, a corpus that cannot be one. Reads no text, and fetches none.

    Raises:
        ConfigError: an input or the tokenizer names nothing that exists, or no file behind the inputs holds anything.
    """
    if settings.tokenizer is not None and not Path(settings.tokenizer).expanduser().is_file():
        raise ConfigError(f"data.tokenizer: {settings.tokenizer!r}: no such file; give a tokenizer.json, or none to train one")
    sources = resolve_inputs(settings.inputs, store)
    if not any(source.holds_something() for source in sources):
        raise ConfigError(
            f"data.inputs {list(settings.inputs)}: expected files with text, found {len(sources)} files, none of which is a "
            "regular file that can be read and is not empty; correct data.inputs or bring the corpus"
        )


def _resolve(name: str, store: Store) -> list[Source]:
    if name == STDLIB:
        return _stdlib()
    if name.startswith("builtin:"):
        raise ConfigError(f"data.inputs: unknown built-in corpus {name!r}; there is {STDLIB!r}")
    if name.startswith(STORE_SCHEME):
        return _stored(name, store)
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path, label=name.rstrip("/"))
    if path.exists():
        return [FileSource(label=name, path=path)]
    return _glob(name)


def _glob(name: str) -> list[Source]:
    matches = sorted(glob.glob(os.path.expanduser(name), recursive=True)) if glob.has_magic(name) else []
    if not matches:
        kind = "no file matches this glob" if glob.has_magic(name) else "no such file or folder"
        raise ConfigError(
            f"data.inputs: {name!r}: {kind} (working folder {os.getcwd()}); correct data.inputs or bring the corpus"
        )
    return [FileSource(label=match, path=Path(match)) for match in matches if not os.path.isdir(match)]


def _folder(folder: Path, *, label: str, suffix: str = "", without: tuple[str, ...] = ()) -> list[Source]:
    relative = sorted(_walk(folder, without), key=lambda path: path.parts)
    wanted = [path for path in relative if path.name.endswith(suffix)]
    return [FileSource(label=f"{label}/{path.as_posix()}", path=folder / path) for path in wanted]


def _walk(folder: Path, without: tuple[str, ...]) -> Iterator[Path]:
    """Relative paths of the files below `folder`. A folder that cannot be listed comes as a path, to be refused as one."""
    unlisted: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=lambda error: unlisted.append(Path(error.filename))):
        folders[:] = [name for name in folders if name not in without and not name.startswith(".")]
        yield from (Path(parent, name).relative_to(folder) for name in files if not name.startswith("."))
    yield from (path.relative_to(folder) for path in unlisted)


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
    path = Path(name).expanduser().absolute()
    while glob.has_magic(str(path)):
        path = path.parent
    return path if path.exists() else None


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
