"""Token windows out of memory-mapped shards, and the manifest they hang on."""

import functools
import hashlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from prunella.data import reader as reader_module
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
from prunella.storage import S3Store
from waiting import wait_until

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


def test_a_shard_whose_copy_makes_room_is_read_on_from_its_map(bucket_store):
    manifest = put_dataset(bucket_store)
    reader = TokenReader(bucket_store, manifest, "train")
    before = reader.sequence(0, 8)

    assert bucket_store.drop_copy(manifest.train[0].file.key)
    assert np.array_equal(reader.sequence(0, 8), before)


def mapped_shards(folder):
    """Names of the files below a folder that this process maps."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {Path(line.split()[5]).name for line in lines if str(folder) in line}


def test_copies_are_mapped_up_to_a_part_of_their_limit_the_longest_unused_go_first(bucket_store, tmp_path, monkeypatch):
    manifest = put_dataset(bucket_store)
    monkeypatch.setenv("PRUNELLA_CACHE_BYTES", str(64 * 2 * 64))  # a reader maps a 64th: two shards of 64 bytes
    reader = TokenReader(S3Store(bucket_store.root), manifest, "train")

    for index in (0, 5, 0, 9):  # of shards 0, 1, 0, 2
        reader.sequence(index, 8)

    assert mapped_shards(tmp_path) == {"train-00000.bin", "train-00002.bin"}


def test_a_shard_is_mapped_whatever_the_limit(bucket_store, tmp_path, monkeypatch):
    manifest = put_dataset(bucket_store)
    monkeypatch.setenv("PRUNELLA_CACHE_BYTES", "1")
    reader = TokenReader(S3Store(bucket_store.root), manifest, "train")

    assert np.array_equal(reader.sequence(0, 99), TOKENS)
    assert mapped_shards(tmp_path) == {"train-00003.bin"}


def test_the_files_of_a_folder_all_stay_mapped(store, tmp_path, monkeypatch):
    manifest = put_dataset(store)
    monkeypatch.setenv("PRUNELLA_CACHE_BYTES", "1")
    reader = TokenReader(store, manifest, "train")

    reader.sequence(0, 99)

    assert len(mapped_shards(tmp_path)) == len(manifest.train)


@pytest.fixture
def one_map(bucket_store, monkeypatch):
    """A reader that has proven four shards and maps but the last; a look at another maps that again."""
    manifest = put_dataset(bucket_store)
    monkeypatch.setattr(reader_module, "_PARTS_OF_LIMIT", 2**40)
    reader = TokenReader(bucket_store, manifest, "train")
    reader.sequence(0, 99)
    return reader


def test_a_shard_that_is_mapped_again_asks_nobody_and_is_not_hashed_again(one_map, bucket_store, monkeypatch):
    monkeypatch.setattr(bucket_store, "call", lambda *_, **__: pytest.fail("the bucket was asked"))
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))

    assert np.array_equal(one_map.sequence(0, 99), TOKENS)


def test_a_shard_that_another_process_used_meanwhile_is_not_hashed_again(one_map, bucket_store, monkeypatch):
    bucket_store.local_path(shard_key(FINGERPRINT, "train", 0))
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))

    assert np.array_equal(one_map.sequence(0, 8), TOKENS[:9])


def test_a_copy_that_is_mapped_again_counts_as_used(one_map, bucket_store):
    copy = bucket_store.local_path(shard_key(FINGERPRINT, "train", 0))
    os.utime(copy, ns=(1, copy.stat().st_mtime_ns))

    one_map.sequence(0, 8)

    assert time.time() - copy.stat().st_atime < 60


@pytest.mark.parametrize("how", ["written to", "replaced"])
def test_a_shard_whose_file_has_changed_is_proven_anew_before_it_is_mapped_again(one_map, bucket_store, caplog, how):
    key = shard_key(FINGERPRINT, "train", 0)
    path = bucket_store.local_path(key)
    written = path.stat()
    if how == "written to":
        flip_in_copy(bucket_store, key)
    else:
        other = path.with_name("other")
        other.write_bytes(bytes(written.st_size))
        os.utime(other, ns=(written.st_atime_ns, written.st_mtime_ns))
        other.replace(path)

    assert np.array_equal(one_map.sequence(0, 8), TOKENS[:9])
    assert caplog.text.count("damaged_copy_dropped") == 1


def test_a_split_that_has_no_room_among_the_copies_is_told(bucket_store, monkeypatch, caplog):
    manifest = put_dataset(bucket_store)
    monkeypatch.setenv("PRUNELLA_CACHE_BYTES", "199")

    TokenReader(S3Store(bucket_store.root), manifest, "train")

    assert "split_exceeds_copies split=train size_bytes=200 PRUNELLA_CACHE_BYTES=199" in caplog.text


def test_what_two_readers_of_one_machine_hold_stays_within_the_bound(bucket_store, tmp_path, monkeypatch):
    """The limit, and for each reader a mapped shard and one that is being fetched: 8 shards, of 12 that each reads."""
    shards, limit, size_bytes = 12, 4, 16 * 4096
    tokens = np.random.default_rng(0).integers(0, 2000, shards * size_bytes // 2)
    put_dataset(bucket_store, tokens=tokens, shard_tokens=size_bytes // 2)
    (tmp_path / "tokens.npy").write_bytes(tokens.astype(np.int64).tobytes())
    monkeypatch.setenv("PRUNELLA_CACHE_BYTES", str(limit * size_bytes))
    arguments = [bucket_store.root, FINGERPRINT, str(tmp_path / "tokens.npy")]

    readers = [
        subprocess.Popen([sys.executable, "-c", _READS_ALL, *arguments, seed], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for seed in "12"
    ]
    held = []
    try:
        while not all(map(has_spoken, readers)):
            held.append(held_bytes(readers, tmp_path / "scratch"))
            time.sleep(0.1)
        held.append(held_bytes(readers, tmp_path / "scratch"))
        said = [reader.communicate(timeout=60)[0] for reader in readers]
    finally:
        for reader in readers:
            reader.kill()

    assert said == [b"all right\n"] * 2
    assert len(held) > 3
    assert 0 < max(held) <= (limit + 2 * 2) * size_bytes


#: Reads every sequence of the train split twice, in an order of its own, and ends when told.
_READS_ALL = """
import sys
import numpy as np
from prunella.data.manifest import load_manifest
from prunella.data.reader import TokenReader
from prunella.storage import open_patiently

root, fingerprint, expected, seed = sys.argv[1:]
tokens = np.fromfile(expected, dtype=np.int64)
store = open_patiently(root)
reader = TokenReader(store, load_manifest(store, fingerprint), "train")
length = 30_000
order = np.tile(np.arange(reader.n_sequences(length)), 2)
np.random.default_rng(int(seed)).shuffle(order)
is_right = all(np.array_equal(reader.sequence(int(i), length), tokens[i * length : (i + 1) * length + 1]) for i in order)
print("all right" if is_right else "wrong tokens", flush=True)
sys.stdin.read()
"""


def has_spoken(reader):
    return bool(select.select([reader.stdout], [], [], 0)[0])


def is_stopped(reader):
    return psutil.Process(reader.pid).status() == psutil.STATUS_STOPPED


def held_bytes(readers, scratch):
    """What the disk keeps of copies at one moment: under a name, mapped or open, every file once. The readers stand still."""
    for reader in readers:
        reader.send_signal(signal.SIGSTOP)
        wait_until(functools.partial(is_stopped, reader), every_s=0.001)
    try:
        held = {path.stat().st_ino: path.stat().st_size for path in scratch.rglob("*") if path.is_file()}
        for reader in readers:
            held |= dict(maps_of(reader.pid, scratch)) | dict(open_files_of(reader.pid, scratch))
    finally:
        for reader in readers:
            reader.send_signal(signal.SIGCONT)
    return sum(held.values())


def maps_of(pid, scratch):
    """Inode and size of each mapped file; sizes are of whole pages."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, _, _, _, inode, *path = line.split(maxsplit=5)
        if path and path[0].startswith(str(scratch)):
            first, last = (int(address, 16) for address in span.split("-"))
            yield int(inode), last - first


def open_files_of(pid, scratch):
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(link).startswith(str(scratch)):
            yield link.stat().st_ino, link.stat().st_size


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
