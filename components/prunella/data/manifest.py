"""What a token data set is: its manifest, its keys, its errors.

Decides where each part of a data set lies and when one exists: its manifest, written last, exists. Trusts nothing that was
read before its sha256 was checked. Never writes; data prep does. A manifest holds no time and no machine, so that the same
files always give the same bytes. It also counts the copies of documents and names what could not be read, neither of which
reaches a token or the fingerprint: files with the same documents can have one fingerprint and different manifests. Needs the
standard library only: Airflow's side reads it too.

    datasets/<fingerprint>/manifest.json  tokenizer.json  train-00000.bin ...  heldout-00000.bin ...
"""

import hashlib
from dataclasses import dataclass

from prunella.errors import ConfigError, DataCorrupt, DigestMismatch, KeyMissing
from prunella.records import FileEntry, Record, from_bytes, unseal
from prunella.storage import Store

TRAIN = "train"
HELDOUT = "heldout"
SPLITS = (TRAIN, HELDOUT)

REBUILD = "run data prep again as a repair (the healing loop does so by itself): it rebuilds the part from the corpus"


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """An input that could not be read and was left out. `path` names file, and line or row where there is one."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One file of token ids.

    `documents` counts the documents that end in it; `carry` the tokens of the next, unfinished document in this and earlier
    shards: with both, any shard can be rebuilt without the ones before it.
    """

    file: FileEntry
    tokens: int
    documents: int
    carry: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetManifest(Record):
    """A committed data set. `vocab_size` counts token ids; `heldout_bytes` is the UTF-8 size of the held-out text."""

    KIND = "dataset"
    fingerprint: str
    tokenizer: FileEntry
    vocab_size: int
    end_of_text: int
    dtype: str
    train: tuple[Shard, ...]
    heldout: tuple[Shard, ...]
    documents: int
    duplicates: int
    heldout_bytes: int
    train_tokens: int
    heldout_tokens: int
    quarantined: tuple[Quarantined, ...] = ()

    def shards(self, split: str) -> tuple[Shard, ...]:
        """The shards of `train` or `heldout`, in order. Raises ConfigError for another word."""
        if split not in SPLITS:
            raise ConfigError(f"split {split!r}: expected {' or '.join(SPLITS)}")
        return self.train if split == TRAIN else self.heldout


def dataset_prefix(fingerprint: str) -> str:
    """Folder of a data set."""
    return f"datasets/{fingerprint}"


def manifest_key(fingerprint: str) -> str:
    """Key of the manifest, whose existence is the data set's."""
    return f"{dataset_prefix(fingerprint)}/manifest.json"


def tokenizer_key(fingerprint: str) -> str:
    """Key of the tokenizer, in the format of the `tokenizers` library."""
    return f"{dataset_prefix(fingerprint)}/tokenizer.json"


def shard_key(fingerprint: str, split: str, number: int) -> str:
    """Key of shard `number` (from 0) of a split."""
    return f"{dataset_prefix(fingerprint)}/{split}-{number:05d}.bin"


def count_sequences(n_tokens: int, seq_len: int) -> int:
    """Whole training sequences in a stream: each needs `seq_len` tokens and the one after them as its last target."""
    return max(0, (n_tokens - 1) // seq_len)


def load_manifest(store: Store, fingerprint: str, sha256: str | None = None) -> DatasetManifest:
    """The manifest of a data set, proven to be the one with `sha256` where that is given.

    Raises:
        DataCorrupt: it is missing, damaged, or of another data set.
        SchemaTooNew: a newer Prunella wrote it.
    """
    key = manifest_key(fingerprint)
    try:
        data = store.get(key)
        unseal(data, key)
    except KeyMissing as error:
        raise DataCorrupt(f"{key}: no such data set under {store.root}; {REBUILD}") from error
    except DigestMismatch as error:
        raise DataCorrupt(f"{key}: the manifest is damaged; {REBUILD}") from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 not in (None, found):
        raise DataCorrupt(f"{key}: expected sha256 {sha256}, found {found}; {REBUILD}")
    manifest = from_bytes(DatasetManifest, data, key)
    if manifest.fingerprint != fingerprint:
        raise DataCorrupt(f"{key}: the manifest is of data set {manifest.fingerprint}; {REBUILD}")
    return manifest
