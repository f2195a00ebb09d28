"""The line between host and guest: who may speak, words as JSON, and files that changed since they were last sent."""

import base64
import hashlib
import hmac
import json
import os
from dataclasses import dataclass
from fnmatch import fnmatch
from multiprocessing.connection import Connection
from pathlib import Path, PurePosixPath
from typing import Any

#: Between two words of a guest. Source: own choice 2026-11, as often as the launcher of a training segment looks.
BEAT_S = 0.1
#: A line that is silent for so long is dead: a machine that lost its power says nothing. Source: own choice 2026-11, well above
#: a pause of either side and below the time a rank may be silent in a collective.
_SILENT_S = 30.0

#: What stands for the stage's scratch folder, and for the interpreter, in a command that is run elsewhere.
SCRATCH, PYTHON = "{scratch}", "{python}"
_GROWING = (".log", ".jsonl")
Word = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared:
    """Which files of a stage's scratch folder cross the line, as patterns relative to it.

    Args:
        from_guests: what processes write there. Those that end in `.log` or `.jsonl` only ever grow.
        from_host: what the stage writes for them.
    """

    from_guests: tuple[str, ...]
    from_host: tuple[str, ...] = ()


def secret_of(request: bytes) -> bytes:
    """What only pods of this request know: it lies in the store, and the store's key is not in it.

    Pods that are given no key (the root is in a volume, or the nodes have an identity of their own) know the request alone:
    whoever has read that is believed, and only the network policy keeps others from calling.
    """
    return hmac.digest(os.environ.get("AWS_SECRET_ACCESS_KEY", "").encode(), request, "sha256")


def host_address() -> tuple[str, int]:
    return os.environ["PET_MASTER_ADDR"], int(os.environ["PET_MASTER_PORT"])


def send(connection: "Connection", word: Word) -> None:
    connection.send_bytes(json.dumps(word).encode())


def receive(connection: "Connection") -> Word:
    """Raises EOFError when the other side is gone, or silent for too long."""
    if not connection.poll(_SILENT_S):
        raise EOFError(f"silent for {_SILENT_S:g} s")
    word: Word = json.loads(connection.recv_bytes())
    return word


class Outbox:
    """The files of a folder that match a pattern, as far as they changed since they were last sent."""

    def __init__(self, folder: Path, patterns: tuple[str, ...]) -> None:
        self._folder = folder
        self._patterns = patterns
        self._sent_bytes: dict[Path, int] = {}
        self._sent_digest: dict[Path, bytes] = {}

    def changed(self) -> list[Word]:
        paths = {path for pattern in self._patterns for path in self._folder.glob(pattern) if path.suffix != ".tmp"}
        return [word for path in sorted(paths) if (word := self._change(path)) is not None]

    def _change(self, path: Path) -> Word | None:
        try:
            return self._growth(path) if path.suffix in _GROWING else self._replacement(path)
        except FileNotFoundError:
            return None

    def _growth(self, path: Path) -> Word | None:
        sent = self._sent_bytes.get(path, 0)
        with path.open("rb") as file:
            file.seek(sent)
            data = file.read()
        self._sent_bytes[path] = sent + len(data)
        return {**self._named(path, data), "at": sent} if data else None

    def _replacement(self, path: Path) -> Word | None:
        data = path.read_bytes()
        digest = hashlib.sha256(data).digest()
        if self._sent_digest.get(path) == digest:
            return None
        self._sent_digest[path] = digest
        return self._named(path, data)

    def _named(self, path: Path, data: bytes) -> Word:
        return {"name": path.relative_to(self._folder).as_posix(), "data": base64.b85encode(data).decode()}


def unpack(folder: Path, files: list[Word], patterns: tuple[str, ...]) -> None:
    """Write what was sent: whole files at once, logs at their ends.

    Raises:
        OSError: a name that was not agreed upon; whoever sends it is not believed any further.
    """
    for word in files:
        name = PurePosixPath(word["name"])
        is_agreed = any(len(name.parts) == len(PurePosixPath(one).parts) and fnmatch(str(name), one) for one in patterns)
        if not is_agreed or ".." in name.parts:
            raise OSError(f"sent {word['name']!r}, which is none of {', '.join(patterns)}")
        path, data = folder / name, base64.b85decode(word["data"])
        path.parent.mkdir(parents=True, exist_ok=True)
        if "at" in word:
            with path.open("ab") as file:
                file.truncate(int(word["at"]))
                file.write(data)
        else:
            temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            temporary.write_bytes(data)
            temporary.replace(path)
