"""What records are made of: the base of them all, references, and the small facts that many of them carry."""

from dataclasses import dataclass, field
from typing import ClassVar

from prunella.errors import Cause
from prunella.records.words import Part

Json = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Base of everything the ledger stores."""

    KIND: ClassVar[str] = ""
    VERSION: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A stretch of time with a name. `end_ns` >= `start_ns`."""

    part: Part
    start_ns: int
    end_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """What a stage knows of its own failure. Describes; never decides."""

    cause: Cause
    message: str
    node: str | None = None
    rank: int | None = None
    step: int | None = None
    evidence: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeRef:
    """A node as a request names it: the physical identity, and how many devices it brings."""

    name: str
    devices: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Batches left out of the data order, first to last, both included. Batches count from 0."""

    first: int
    last: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of a committed set."""

    key: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointRef:
    """A checkpoint by name. `name` is `<segment>-<attempt>-<index>`; the manifest's sha256 pins its content."""

    name: str
    step: int
    manifest_sha256: str
