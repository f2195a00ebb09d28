"""Builds what is missing of a data set: all of it, what a killed build left undone, or the parts that were damaged.

The manifest is written last, once. Where it exists it is the truth: rebuilt parts must have exactly the bytes it names.
"""

import hashlib
import logging
from functools import partial

from prunella.config import Config
from prunella.data.manifest import (
    HELDOUT,
    SPLITS,
    TRAIN,
    DatasetManifest,
    Shard,
    load_manifest,
    manifest_key,
    shard_key,
    tokenizer_key,
)
from prunella.data.reader import read_tokenizer
from prunella.data.tokenizer import count_ids, end_of_text_id
from prunella.data_prep.inspection import Inspection
from prunella.data_prep.shards import (
    ShardJob,
    Tokens,
    commit_shard,
    commit_tokenizer,
    committed_shards,
    find_part,
    position_after,
    put_kept,
)
from prunella.data_prep.survey import Survey
from prunella.data_prep.tokenisation import Encoder, run_jobs
from prunella.data_prep.vocabulary import dtype_for, make_tokenizer
from prunella.errors import DataCorrupt, KeyExists
from prunella.records import FileEntry, to_bytes
from prunella.storage import Store

logger = logging.getLogger(__name__)


def build_dataset(
    store: Store, survey: Survey, config: Config, inspection: Inspection, *, manifest_sha256: str | None
) -> DatasetManifest:
    """Make the data set whole and return its manifest.

    Args:
        manifest_sha256: what the experiment's record says the manifest must be; None for a new data set.

    Raises:
        ConfigError: the tokenizer does not fit the model.
        DataCorrupt: what was rebuilt is not what was committed before, or the corpus changed meanwhile.
    """
    if inspection.manifest is not None:
        _repair(store, survey, config, inspection, inspection.manifest)
        return inspection.manifest
    manifest = _build(store, survey, config)
    return _commit_manifest(store, manifest, manifest_sha256)


def _commit_manifest(store: Store, manifest: DatasetManifest, manifest_sha256: str | None) -> DatasetManifest:
    """Write the manifest; where another preparation of the same tokens was faster, theirs is the data set's."""
    key, data = manifest_key(manifest.fingerprint), to_bytes(manifest)
    found = hashlib.sha256(data).hexdigest()
    if manifest_sha256 not in (None, found):
        raise DataCorrupt(
            f"{key}: rebuilt with sha256 {found}, the experiment recorded {manifest_sha256}: the corpus is not what it was; "
            f"its documents are, but the manifest also counts copies of them (found {manifest.duplicates}) and names what "
            f"cannot be read (found {len(manifest.quarantined)}); remove what was added since, bring back what was removed, "
            "or start a new experiment in a new root"
        )
    try:
        store.put_new(key, data)
    except KeyExists:
        return _theirs(store, manifest, manifest_sha256)
    return manifest


def _theirs(store: Store, mine: DatasetManifest, manifest_sha256: str | None) -> DatasetManifest:
    try:
        return load_manifest(store, mine.fingerprint, manifest_sha256)
    except DataCorrupt:
        put_kept(store, manifest_key(mine.fingerprint), to_bytes(mine))
        return mine


def _build(store: Store, survey: Survey, config: Config) -> DatasetManifest:
    dtype = dtype_for(config.model.vocab_size)
    committed = find_part(store, tokenizer_key(survey.fingerprint))
    entry = committed.file if committed else _commit_tokenizer(store, survey, config, None)
    encoder = _encoder(store, entry, dtype)
    shards = {split: committed_shards(store, survey.fingerprint, split) for split in SPLITS}
    for split in SPLITS:
        logger.info("dataset_build_started split=%s committed_shards=%s", split, len(shards[split]))
    jobs = [_job_to_end(store, survey, config, encoder.dtype, split, shards[split]) for split in SPLITS]
    run_jobs(survey, encoder, jobs, workers=config.data.workers)
    return DatasetManifest(
        fingerprint=survey.fingerprint,
        tokenizer=entry,
        vocab_size=count_ids(encoder.tokenizer),
        end_of_text=encoder.end_of_text,
        dtype=dtype,
        train=tuple(shards[TRAIN]),
        heldout=tuple(shards[HELDOUT]),
        documents=len(survey.hashes),
        duplicates=survey.duplicates,
        heldout_bytes=survey.heldout_bytes,
        train_tokens=sum(shard.tokens for shard in shards[TRAIN]),
        heldout_tokens=sum(shard.tokens for shard in shards[HELDOUT]),
        quarantined=survey.quarantined,
    )


def _repair(store: Store, survey: Survey, config: Config, inspection: Inspection, manifest: DatasetManifest) -> None:
    if inspection.is_tokenizer_damaged:
        _commit_tokenizer(store, survey, config, manifest.tokenizer)
    encoder = _encoder(store, manifest.tokenizer, manifest.dtype)
    jobs = [_job_for_one(store, survey, config, manifest, split, number) for split, number in inspection.damaged]
    run_jobs(survey, encoder, jobs, workers=config.data.workers)
    for split, number in inspection.damaged:
        logger.warning("shard_repaired key=%s", shard_key(survey.fingerprint, split, number))


def _commit_tokenizer(store: Store, survey: Survey, config: Config, expected: FileEntry | None) -> FileEntry:
    return commit_tokenizer(store, tokenizer_key(survey.fingerprint), make_tokenizer(survey, config), expected=expected)


def _encoder(store: Store, entry: FileEntry, dtype: str) -> Encoder:
    tokenizer = read_tokenizer(store, entry)
    return Encoder(tokenizer=tokenizer, end_of_text=end_of_text_id(tokenizer, entry.key), dtype=dtype)


def _job_to_end(store: Store, survey: Survey, config: Config, dtype: str, split: str, shards: list[Shard]) -> ShardJob:
    """All shards of the split behind those in `shards`, to which each is appended when it is committed."""

    def commit(number: int, tokens: Tokens, documents: int, carry: int) -> None:
        key = shard_key(survey.fingerprint, split, number)
        shards.append(commit_shard(store, key, tokens, documents=documents, carry=carry, expected=None))

    start = position_after(shards)
    return ShardJob(split, number=len(shards), start=start, shard_tokens=config.data.shard_tokens, dtype=dtype, commit=commit)


def _job_for_one(store: Store, survey: Survey, config: Config, manifest: DatasetManifest, split: str, number: int) -> ShardJob:
    """Exactly shard `number` again."""
    shards = manifest.shards(split)
    start = position_after(shards[:number])
    commit = partial(_commit_again, store, shards)
    return ShardJob(
        split,
        number=number,
        last=number,
        start=start,
        shard_tokens=config.data.shard_tokens,
        dtype=manifest.dtype,
        commit=commit,
    )


def _commit_again(store: Store, shards: tuple[Shard, ...], number: int, tokens: Tokens, documents: int, carry: int) -> None:
    expected = shards[number]
    commit_shard(store, expected.file.key, tokens, documents=documents, carry=carry, expected=expected)
