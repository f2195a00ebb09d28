"""Token windows out of memory-mapped shards.

Decides nothing about order; `order.py` does. Sizes of all shards are checked on opening, the sha256 of a shard once, on the
open file that is then mapped; so a damaged shard is named before any token of it is used. A copy of a bucket's object that was
damaged on this machine's disk is fetched once more before the object is blamed. Never writes, never repairs.
"""

import hashlib
import itertools
import logging
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from prunella.data.dtypes import DTYPES
from prunella.data.manifest import REBUILD, DatasetManifest, Shard, count_sequences
from prunella.data.tokenizer import parse_tokenizer
from prunella.errors import DataCorrupt, KeyMissing
from prunella.records import FileEntry
from prunella.storage import Store, with_local_file

logger = logging.getLogger(__name__)


class TokenReader:
    """The tokens of one split, as one stream over all its shards.

    Args:
        split: `train` or `heldout`.

    Raises:
        DataCorrupt: a shard is missing or has another size than committed; `shard` is its number.
    """

    def __init__(self, store: Store, manifest: DatasetManifest, split: str) -> None:
        self._store = store
        self._dtype = DTYPES[manifest.dtype]
        self._shards = manifest.shards(split)
        self._ends = tuple(itertools.accumulate(shard.tokens for shard in self._shards))
        self._mapped: dict[int, np.ndarray[Any, Any]] = {}
        for number, shard in enumerate(self._shards):
            check_size(store, shard.file, number)

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
        return np.concatenate(list(self._pieces(begin, begin + seq_len + 1))).astype(np.int64)

    def _pieces(self, begin: int, end: int) -> "Iterator[np.ndarray[Any, Any]]":
        number = int(np.searchsorted(self._ends, begin, side="right"))
        while begin < end:
            first = self._ends[number] - self._shards[number].tokens
            stop = min(end, self._ends[number])
            yield self._map(number)[begin - first : stop - first]
            begin, number = stop, number + 1

    def _map(self, number: int) -> "np.ndarray[Any, Any]":
        if number not in self._mapped:
            self._mapped[number] = _map_verified(self._store, self._shards[number], number, self._dtype)
        return self._mapped[number]


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


def _map_verified(store: Store, shard: Shard, number: int, dtype: "np.dtype[Any]") -> "np.ndarray[Any, Any]":
    check_size(store, shard.file, number)
    with _open_verified(store, shard.file, number) as file:
        return np.memmap(file, dtype=dtype, mode="r", shape=(shard.tokens,))


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
