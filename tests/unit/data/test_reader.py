"""Token windows out of memory-mapped shards, and the manifest they hang on."""

import hashlib
import os

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from prunella.data.manifest import (
    DatasetManifest,
    Quarantined,
    Shard,
    count_sequences,
    load_manifest,
    manifest_key,
    shard_key,
    tokenizer_key,
)
from prunella.data.reader import TokenReader, check_sha256, load_tokenizer
from prunella.errors import ConfigError, DataCorrupt
from prunella.faults import flip_byte
from prunella.records import FileEntry, to_bytes

FINGERPRINT = "0123456789abcdef"
TOKENS = np.arange(1000, 1100)


def put(store, key, data):
    store.put_new(key, data)
    return FileEntry(key=key, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def put_shards(store, split, tokens, *, shard_tokens, dtype):
    pieces = [tokens[first : first + shard_tokens] for first in range(0, len(tokens), shard_tokens)]
    return tuple(
        Shard(
            file=put(store, shard_key(FINGERPRINT, split, number), piece.astype(dtype).tobytes()),
            tokens=len(piece),
            documents=1,
        )
        for number, piece in enumerate(pieces)
    )


def tokenizer_bytes():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["a small text about a small thing"], trainer)
    return tokenizer.to_str().encode()


def put_dataset(store, *, tokens=TOKENS, shard_tokens=32, dtype="uint16"):
    train = put_shards(store, "train", tokens, shard_tokens=shard_tokens, dtype=dtype)
    heldout = put_shards(store, "heldout", tokens[:20], shard_tokens=shard_tokens, dtype=dtype)
    manifest = DatasetManifest(
        fingerprint=FINGERPRINT,
        tokenizer=put(store, tokenizer_key(FINGERPRINT), tokenizer_bytes()),
        vocab_size=2000,
        end_of_text=0,
        dtype=dtype,
        train=train,
        heldout=heldout,
        documents=5,
        duplicates=0,
        heldout_bytes=80,
        train_tokens=len(tokens),
        heldout_tokens=20,
        quarantined=(Quarantined(path="a.txt", reason="not UTF-8 at byte 0"),),
    )
    store.put_new(manifest_key(FINGERPRINT), to_bytes(manifest))
    return manifest


def test_a_manifest_reads_back_as_it_was_written(store):
    manifest = put_dataset(store)
    sha256 = hashlib.sha256(to_bytes(manifest)).hexdigest()

    assert load_manifest(store, FINGERPRINT) == manifest
    assert load_manifest(store, FINGERPRINT, sha256) == manifest


def test_a_manifest_with_another_sha256_than_recorded_is_refused(store):
    put_dataset(store)

    with pytest.raises(DataCorrupt, match="expected sha256 00"):
        load_manifest(store, FINGERPRINT, "00")


def test_a_missing_manifest_says_what_to_do(store):
    with pytest.raises(DataCorrupt, match=r"no such data set.*run data prep again"):
        load_manifest(store, FINGERPRINT)


def test_a_damaged_manifest_is_refused_before_it_is_parsed(store):
    put_dataset(store)
    path = store.local_path(manifest_key(FINGERPRINT))
    path.write_bytes(path.read_bytes().replace(b'"vocab_size":2000', b'"vocab_size":2001'))

    with pytest.raises(DataCorrupt, match="the manifest is damaged"):
        load_manifest(store, FINGERPRINT)


def test_a_manifest_under_another_fingerprint_is_refused(store):
    manifest = put_dataset(store)
    store.put_new(manifest_key("feedfacefeedface"), to_bytes(manifest))

    with pytest.raises(DataCorrupt, match="is of data set 0123456789abcdef"):
        load_manifest(store, "feedfacefeedface")


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("seq_len", [2, 8, 31, 32, 33, 99])
def test_sequences_are_windows_of_the_stream_across_shard_borders(store, dtype, seq_len):
    reader = TokenReader(store, put_dataset(store, dtype=dtype), "train")

    windows = [reader.sequence(index, seq_len) for index in range(reader.n_sequences(seq_len))]

    assert len(windows) == (100 - 1) // seq_len
    for index, window in enumerate(windows):
        assert window.dtype == np.int64
        assert np.array_equal(window, TOKENS[index * seq_len : index * seq_len + seq_len + 1])


def test_the_heldout_split_is_read_apart(store):
    reader = TokenReader(store, put_dataset(store), "heldout")

    assert reader.n_tokens == 20
    assert np.array_equal(reader.sequence(0, 19), TOKENS[:20])


@pytest.mark.parametrize(("n_tokens", "expected"), [(0, 0), (1, 0), (8, 0), (9, 1), (16, 1), (17, 2)])
def test_a_sequence_needs_the_token_after_it(n_tokens, expected):
    assert count_sequences(n_tokens, 8) == expected


@pytest.mark.parametrize("index", [-1, 12])
def test_a_sequence_that_does_not_exist_is_refused(store, index):
    reader = TokenReader(store, put_dataset(store), "train")

    with pytest.raises(IndexError, match="there are 12 sequences of 8 tokens"):
        reader.sequence(index, 8)


def test_an_unknown_split_is_refused(store):
    manifest = put_dataset(store)

    with pytest.raises(ConfigError, match="expected train or heldout"):
        TokenReader(store, manifest, "test")


def test_a_cut_shard_is_named_on_opening(store):
    manifest = put_dataset(store)
    os.truncate(store.local_path(manifest.train[2].file.key), 32)

    with pytest.raises(DataCorrupt, match=r"train-00002.bin: expected 64 bytes, found 32; run data prep again") as caught:
        TokenReader(store, manifest, "train")

    assert caught.value.shard == 2


def test_a_missing_shard_is_named_on_opening(store):
    manifest = put_dataset(store)
    store.delete(manifest.train[1].file.key)

    with pytest.raises(DataCorrupt, match=r"train-00001.bin: the file is missing") as caught:
        TokenReader(store, manifest, "train")

    assert caught.value.shard == 1


def test_a_flipped_byte_is_found_before_a_token_of_its_shard_is_used(store):
    manifest = put_dataset(store)
    path = store.local_path(manifest.train[1].file.key)
    damaged = bytearray(path.read_bytes())
    damaged[5] ^= 1
    path.write_bytes(damaged)
    reader = TokenReader(store, manifest, "train")

    assert reader.sequence(0, 8).tolist() == TOKENS[:9].tolist()
    with pytest.raises(DataCorrupt, match=r"train-00001.bin: expected sha256") as caught:
        reader.sequence(5, 8)

    assert caught.value.shard == 1


def flip_in_copy(store, key):
    path = store.local_path(key)
    damaged = bytearray(path.read_bytes())
    damaged[5] ^= 1
    path.write_bytes(damaged)


def test_a_copy_that_was_damaged_on_disk_is_fetched_again_and_condemns_no_shard(bucket_store, caplog):
    manifest = put_dataset(bucket_store)
    for shard in manifest.train:
        flip_in_copy(bucket_store, shard.file.key)
    reader = TokenReader(bucket_store, manifest, "train")

    tokens = [reader.sequence(index, 8).tolist() for index in range(12)]
    check_sha256(bucket_store, manifest.train[0].file)

    assert tokens == [TOKENS[8 * index : 8 * index + 9].tolist() for index in range(12)]
    assert caplog.text.count("damaged_copy_dropped") == len(manifest.train)


def test_a_full_check_looks_at_the_bucket_before_it_blames_a_part(bucket_store, caplog):
    entry = put_dataset(bucket_store).train[1].file
    flip_in_copy(bucket_store, entry.key)

    check_sha256(bucket_store, entry)

    assert caplog.text.count("damaged_copy_dropped") == 1


def test_an_object_that_is_damaged_in_the_bucket_is_still_found(bucket_store):
    manifest = put_dataset(bucket_store)
    flip_byte(bucket_store, manifest.train[1].file.key)

    with pytest.raises(DataCorrupt, match=r"train-00001.bin: expected sha256") as caught:
        TokenReader(bucket_store, manifest, "train").sequence(5, 8)

    assert caught.value.shard == 1


def test_a_shard_whose_copy_makes_room_stays_mapped(bucket_store):
    manifest = put_dataset(bucket_store)
    reader = TokenReader(bucket_store, manifest, "train")
    before = reader.sequence(0, 8)

    assert bucket_store.drop_copy(manifest.train[0].file.key)
    assert np.array_equal(reader.sequence(0, 8), before)


def test_a_shard_is_verified_once(store):
    manifest = put_dataset(store)
    reader = TokenReader(store, manifest, "train")
    first = reader.sequence(0, 8)
    store.delete(manifest.train[0].file.key)

    again = reader.sequence(0, 8)

    assert np.array_equal(first, again)


def test_text_never_becomes_an_end_of_text_token(store):
    tokenizer = load_tokenizer(store, put_dataset(store))

    ids = tokenizer.encode("small<|endoftext|>text").ids

    assert tokenizer.token_to_id("<|endoftext|>") not in ids
    assert tokenizer.decode(ids) == "small<|endoftext|>text"


def test_a_damaged_tokenizer_is_refused_before_it_is_parsed(store):
    manifest = put_dataset(store)
    path = store.local_path(manifest.tokenizer.key)
    path.write_bytes(path.read_bytes().replace(b"small", b"smell"))

    with pytest.raises(DataCorrupt, match=r"tokenizer.json: expected sha256"):
        load_tokenizer(store, manifest)
