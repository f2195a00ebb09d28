"""Token windows out of memory-mapped shards.

Decides nothing about order; `order.py` does. Sizes of all shards are checked on opening, the sha256 of a shard on the open file
that is then mapped; so a damaged shard is named before any token of it is used. A copy of a bucket's object that was damaged on
this machine's disk is fetched once more before the object is blamed. Never writes, never repairs.

The files of a folder stay mapped, which costs nothing. A bucket's copy does not: while it is mapped, the disk keeps it, also
when the cache has dropped it. So a reader maps a 64th of what the cache may hold, or one shard if that is more, and lets the
longest unused go first. One that is mapped again asks nobody and is not hashed again where it is the very file that was proven.
All readers of a machine together: the cache's limit, and for each the above and a shard that is being fetched.
"""

import hashlib
import itertools
import logging
import math
from collections import OrderedDict
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from prunella.data.dtypes import DTYPES
from prunella.data.manifest import REBUILD, DatasetManifest, Shard, count_sequences
from prunella.data.tokenizer import parse_tokenizer
from prunella.errors import DataCorrupt, KeyMissing
from prunella.records import FileEntry
from prunella.storage import Store, identity_of, open_again, with_local_file

logger = logging.getLogger(__name__)

#: A reader maps at most this part of the cache's limit. Source: own choice 2026-11: the ranks of a machine with 16 accelerators
#: then add a quarter at most; of the default of 8 GiB, a part is 64 shards of the default of 2 MiB.
_PARTS_OF_LIMIT = 64


class TokenReader:
    """The tokens of one split, as one stream over all its shards.

    Args:
        split: `train` or `heldout`.

    Raises:
        DataCorrupt: a shard is missing or has another size than committed; `shard` is its number.
    """

    def __init__(self, store: Store, manifest: DatasetManifest, split: str) -> None:
        self._shards = manifest.shards(split)
        self._ends = tuple(itertools.accumulate(shard.tokens for shard in self._shards))
        for number, shard in enumerate(self._shards):
            check_size(store, shard.file, number)
        self._maps = _Maps(store, self._shards, DTYPES[manifest.dtype])
        limit, size_bytes = store.copies_limit_bytes, sum(shard.file.size_bytes for shard in self._shards)
        if limit is not None and size_bytes > limit:  # in random order, each sequence of the rest fetches a shard
            logger.warning("split_exceeds_copies split=%s size_bytes=%s PRUNELLA_CACHE_BYTES=%s", split, size_bytes, limit)

    @property
    def n_tokens(self) -> int:
        """Tokens of the split."""
        return self._ends[-1] if self._ends else 0

    def n_sequences(self, seq_len: int) -> int:
        """Whole sequences of `seq_len` tokens, each with the token after it."""
        return count_sequences(self.n_tokens, seq_len)

    def sequence(self, index: int, seq_len: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """Tokens `[index * seq_len, index * seq_len + seq_len + 1)` of the stream, shape (seq_len + 1,).

        Raises:
            IndexError: there is no such sequence.
            DataCorrupt: a shard does not hold what was committed; `shard` is its number.
        """
        if not 0 <= index < self.n_sequences(seq_len):
            raise IndexError(f"sequence {index}: there are {self.n_sequences(seq_len)} sequences of {seq_len} tokens")
        begin = index * seq_len
        return np.concatenate(list(self._pieces(begin, begin + seq_len + 1)))

    def _pieces(self, begin: int, end: int) -> "Iterator[np.ndarray[Any, np.dtype[np.int64]]]":
        number = int(np.searchsorted(self._ends, begin, side="right"))
        while begin < end:
            first = self._ends[number] - self._shards[number].tokens
            stop = min(end, self._ends[number])
            yield self._maps[number][begin - first : stop - first].astype(np.int64)  # no map outlives what is read of it
            begin, number = stop, number + 1


class _Maps:
    """Proven shards by number, mapped: as many at a time as `copies_limit_bytes` of their store leaves to a reader."""

    def __init__(self, store: Store, shards: tuple[Shard, ...], dtype: "np.dtype[Any]") -> None:
        self._store = store
        self._shards = shards
        self._dtype = dtype
        limit_bytes = store.copies_limit_bytes
        self._room_bytes = math.inf if limit_bytes is None else limit_bytes // _PARTS_OF_LIMIT
        self._mapped = OrderedDict[int, np.ndarray[Any, Any]]()  # the longest unused first
        self._held_bytes = 0
        self._proven: dict[int, tuple[Path, tuple[int, ...]]] = {}

    def __getitem__(self, number: int) -> "np.ndarray[Any, Any]":
        if number not in self._mapped:
            self._make_room(self._shards[number].file.size_bytes)
            with self._open(number) as file:
                self._mapped[number] = np.memmap(file, dtype=self._dtype, mode="r", shape=(self._shards[number].tokens,))
            self._held_bytes += self._mapped[number].nbytes
        self._mapped.move_to_end(number)
        return self._mapped[number]

    def _make_room(self, size_bytes: int) -> None:
        while self._mapped and self._held_bytes + size_bytes > self._room_bytes:
            _, longest_unused = self._mapped.popitem(last=False)
            self._held_bytes -= longest_unused.nbytes

    def _open(self, number: int) -> BufferedReader:
        """The file of a shard, open: that which was proven, if it is still there and as it was, else a newly proven one."""
        file = open_again(*self._proven[number]) if number in self._proven else None
        if file is None:
            entry = self._shards[number].file
            check_size(self._store, entry, number)
            file = _open_verified(self._store, entry, number)
            self._proven[number] = Path(file.name), identity_of(file.fileno())
        return file


def load_tokenizer(store: Store, manifest: DatasetManifest) -> Tokenizer:
    """The tokenizer of a data set; text is never read as a special token, so a document cannot forge an end-of-text.

    Raises:
        DataCorrupt: its bytes are not the ones committed. Checked before they are parsed.
    """
    return read_tokenizer(store, manifest.tokenizer)


def read_tokenizer(store: Store, entry: FileEntry) -> Tokenizer:
    """As `load_tokenizer`, while there is no manifest yet."""
    try:
        data = store.get(entry.key)
    except KeyMissing as error:
        raise DataCorrupt(f"{entry.key}: the tokenizer is missing; {REBUILD}") from error
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise DataCorrupt(f"{entry.key}: expected sha256 {entry.sha256}, found another; {REBUILD}")
    return parse_tokenizer(data, entry.key)


def check_size(store: Store, entry: FileEntry, shard: int | None = None) -> None:
    """Cheap check of a part of a data set.

    Raises:
        DataCorrupt: it is missing or has another size than committed.
    """
    try:
        found = store.size_bytes(entry.key)
    except KeyMissing as error:
        raise DataCorrupt(f"{entry.key}: the file is missing; {REBUILD}", shard=shard) from error
    if found != entry.size_bytes:
        raise DataCorrupt(f"{entry.key}: expected {entry.size_bytes} bytes, found {found}; {REBUILD}", shard=shard)


def check_sha256(store: Store, entry: FileEntry, shard: int | None = None) -> None:
    """Full check of a part of a data set. Raises DataCorrupt."""
    check_size(store, entry, shard)
    _open_verified(store, entry, shard).close()


def _open_verified(store: Store, entry: FileEntry, shard: int | None) -> BufferedReader:
    """The file of a part, open, with every byte of it proven. Raises DataCorrupt."""
    file, found = _open(store, entry.key)
    if found != entry.sha256 and store.drop_copy(entry.key):
        logger.warning("damaged_copy_dropped key=%s expected=%s found=%s", entry.key, entry.sha256, found)
        file.close()
        file, found = _open(store, entry.key)
    if found != entry.sha256:
        file.close()
        raise DataCorrupt(f"{entry.key}: expected sha256 {entry.sha256}, found {found}; {REBUILD}", shard=shard)
    return file


def _open(store: Store, key: str) -> tuple[BufferedReader, str]:
    """The file of an object, open, and its sha256."""
    file = with_local_file(store, key, lambda path: path.open("rb"))
    return file, hashlib.file_digest(file, "sha256").hexdigest()
