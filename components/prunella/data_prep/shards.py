"""From a stream of documents' tokens to committed shards of a fixed size.

A shard is committed in two objects: its bytes, then a record of what lies in it (`datasets/<fp>/parts/`), which says where
the next one starts. So a build that was killed continues behind the last committed shard, and one damaged shard is rebuilt
without the others: both are a `ShardJob` with another start. What is already committed with the same bytes is kept; with
other bytes it is set aside, never overwritten.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunella.data.dtypes import DTYPES
from prunella.data.manifest import Shard, shard_key
from prunella.data.reader import check_sha256
from prunella.errors import ConfigError, DataCorrupt, DigestMismatch, KeyExists, KeyMissing
from prunella.records import FileEntry, Record, from_bytes, to_bytes
from prunella.storage import Store

logger = logging.getLogger(__name__)

Tokens = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartCommitted(Record):
    """A part of a data set whose manifest is not written yet. For the tokenizer, the counts are 0."""

    KIND = "dataset_part"
    shard: Shard


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Where a shard starts: whole documents of the split before it, and tokens of the next that lie before it, too."""

    documents: int = 0
    carry: int = 0


def position_after(shards: tuple[Shard, ...] | list[Shard]) -> Position:
    """Where the shard behind `shards` (all from the first) starts."""
    return Position(documents=sum(shard.documents for shard in shards), carry=shards[-1].carry if shards else 0)


class ShardJob:
    """Builds shards of one split from `number` on, up to `last` or to the end of the stream.

    Args:
        start: where shard `number` starts in the split.
        commit: is given each finished shard: number, tokens (a view, used at once), documents that end in it, carry.
    """

    def __init__(
        self,
        split: str,
        *,
        number: int,
        start: Position,
        shard_tokens: int,
        dtype: str,
        commit: Callable[[int, Tokens, int, int], None],
        last: int | None = None,
    ) -> None:
        self.split = split
        self._number = number
        self._start = start
        self._last = last
        self._commit = commit
        self._buffer: Tokens = np.empty(shard_tokens, dtype=DTYPES[dtype])
        self._filled = 0
        self._documents = 0

    @property
    def is_done(self) -> bool:
        """Whether the last shard asked for is committed."""
        return self._last is not None and self._number > self._last

    def wants(self, document: int) -> bool:
        """Whether document number `document` of the split has tokens in the shards of this job."""
        return document >= self._start.documents and not self.is_done

    def feed(self, document: int, tokens: Tokens) -> None:
        """Take the tokens of the next wanted document, its end-of-text among them."""
        placed = self._start.carry if document == self._start.documents else 0
        while placed < len(tokens) and not self.is_done:
            take = min(len(self._buffer) - self._filled, len(tokens) - placed)
            self._buffer[self._filled : self._filled + take] = tokens[placed : placed + take]
            self._filled += take
            placed += take
            self._documents += placed == len(tokens)
            if self._filled == len(self._buffer):
                self._emit(carry=placed % len(tokens))

    def finish(self) -> None:
        """The stream has ended: commit the last, shorter shard."""
        if self._filled and not self.is_done:
            self._emit(carry=0)

    def _emit(self, *, carry: int) -> None:
        self._commit(self._number, self._buffer[: self._filled], self._documents, carry)
        self._number, self._filled, self._documents = self._number + 1, 0, 0


def part_key(entry_key: str) -> str:
    """Key of the record that says that a part is committed."""
    folder, _, name = entry_key.rpartition("/")
    return f"{folder}/parts/{name.rpartition('.')[0]}.json"


def commit_shard(store: Store, key: str, tokens: Tokens, *, documents: int, carry: int, expected: Shard | None) -> Shard:
    """Commit a shard; `expected` is what the manifest says of it, when it is rebuilt.

    Raises:
        DataCorrupt: the rebuilt bytes are not the ones the manifest names.
    """
    entry = commit_part(store, key, tokens.tobytes(), expected=expected.file if expected else None)
    shard = Shard(file=entry, tokens=len(tokens), documents=documents, carry=carry)
    put_kept(store, part_key(key), to_bytes(PartCommitted(shard=shard)))
    logger.info("shard_committed key=%s tokens=%s", key, len(tokens))
    return shard


def commit_tokenizer(store: Store, key: str, data: bytes, *, expected: FileEntry | None) -> FileEntry:
    """Commit the tokenizer. Raises DataCorrupt as `commit_shard`."""
    entry = commit_part(store, key, data, expected=expected)
    put_kept(store, part_key(key), to_bytes(PartCommitted(shard=Shard(file=entry, tokens=0, documents=0))))
    return entry


def commit_part(store: Store, key: str, data: bytes, *, expected: FileEntry | None) -> FileEntry:
    """Write the bytes of a part. Raises DataCorrupt before anything is written when they are not `expected`."""
    entry = FileEntry(key=key, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    if expected not in (None, entry):
        raise DataCorrupt(
            f"{key}: rebuilt with sha256 {entry.sha256}, which is not what the manifest says: the corpus or the tokenizers "
            "library is not what it was; restore it, or start a new root"
        )
    put_kept(store, key, data)
    return entry


def put_kept(store: Store, key: str, data: bytes) -> None:
    """Write `data` once; the same bytes under that key are kept, others are set aside."""
    try:
        store.put_new(key, data)
    except KeyExists:
        if store.get(key) != data:
            logger.warning("damaged_part_set_aside key=%s at=%s", key, store.set_aside(key))
            store.put_new(key, data)


def committed_shards(store: Store, fingerprint: str, split: str) -> list[Shard]:
    """Shards of an unfinished data set, from the first to the last whose bytes are what was committed."""
    shards: list[Shard] = []
    while (shard := find_part(store, shard_key(fingerprint, split, len(shards)))) is not None:
        shards.append(shard)
    return shards


def find_part(store: Store, key: str) -> Shard | None:
    """The committed part at `key`, every byte of it verified; None when it must be built (again)."""
    where = part_key(key)
    try:
        shard = from_bytes(PartCommitted, store.get(where), where).shard
        check_sha256(store, shard.file)
    except KeyMissing:
        return None
    except (DataCorrupt, DigestMismatch, ConfigError) as error:
        logger.warning("damaged_part_found key=%s error=%s", key, error)
        return None
    return shard
