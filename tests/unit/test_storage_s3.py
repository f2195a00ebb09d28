"""The store in a bucket keeps the promises of the store in a folder, and says of each failure what to do."""

import hashlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from buckets import Bucket, big_file
from prunella.errors import ConfigError, KeyExists, KeyMissing, PrunellaError, StorageFull, StorageUnavailable
from prunella.storage import Content, S3Store, open_store, prove_root
from prunella.storage.parts import PIECE_BYTES

MIB = 2**20


@pytest.fixture
def store(bucket_store: S3Store) -> S3Store:
    """The store in a bucket."""
    return bucket_store


# ------------------------------------------------------------------------------------------------ promises


def test_what_was_put_is_what_is_got(store: S3Store, tmp_path: Path) -> None:
    path = big_file(tmp_path, 100_000)

    store.put_new("a/bytes", path.read_bytes())
    store.put_new_file("a/file", path)

    assert store.get("a/bytes") == store.get("a/file") == store.local_path("a/file").read_bytes() == path.read_bytes()
    assert store.size_bytes("a/bytes") == 100_000
    assert store.exists("a/bytes")
    assert store.list("a") == ["bytes", "file"]
    assert store.list("none") == []


def test_a_file_of_several_parts_arrives_whole(store: S3Store, tmp_path: Path) -> None:
    path = big_file(tmp_path, 20 * MIB + 17)

    store.put_new_file("a/big", path)

    assert hashlib.sha256(store.local_path("a/big").read_bytes()).digest() == hashlib.sha256(path.read_bytes()).digest()


def test_every_part_of_a_file_is_a_sign_of_life(store: S3Store, tmp_path: Path) -> None:
    path = big_file(tmp_path, 20 * MIB)
    before = store.moves

    store.put_new_file("a/big", path)
    sent = store.moves
    store.drop_copy("a/big")
    store.local_path("a/big")

    assert sent >= before + 3 + 3  # parts; the upload's beginning, its end, and a look at what came of it
    assert store.moves >= sent + 20 * MIB // PIECE_BYTES


@pytest.mark.parametrize("size_bytes", [0, 10, 8 * MIB, 20 * MIB + 17])
def test_what_a_file_holds_is_told_when_it_is_put_fetched_and_found(store: S3Store, tmp_path: Path, size_bytes: int) -> None:
    path = big_file(tmp_path, size_bytes)

    told = [store.put_new_file("a/b", path), store.measure("a/b"), store.measure("a/b")]

    assert told == [Content(size_bytes=size_bytes, sha256=hashlib.sha256(path.read_bytes()).hexdigest())] * 3


@pytest.mark.parametrize("size_bytes", [10, 9 * MIB], ids=["one part", "several parts"])
def test_a_key_is_written_once(store: S3Store, tmp_path: Path, size_bytes: int) -> None:
    path = big_file(tmp_path, size_bytes)
    store.put_new("a/b", b"first")

    with pytest.raises(KeyExists, match="'a/b' exists already"):
        store.put_new("a/b", b"second")
    with pytest.raises(KeyExists):
        store.put_new_file("a/b", path)

    assert store.get("a/b") == b"first"


def test_of_many_racing_writers_exactly_one_wins(store: S3Store) -> None:
    def write(writer: int) -> int | None:
        try:
            store.put_new("token", str(writer).encode())
        except KeyExists:
            return None
        return writer

    with ThreadPoolExecutor(8) as pool:
        winners = [writer for writer in pool.map(write, range(32)) if writer is not None]

    assert [str(winner).encode() for winner in winners] == [store.get("token")]


@pytest.mark.parametrize(
    "read",
    [S3Store.get, S3Store.size_bytes, S3Store.stamp, S3Store.local_path, S3Store.measure],
    ids=lambda function: function.__name__,
)
def test_absence_is_told_from_failure(store: S3Store, read: Callable[[S3Store, str], object]) -> None:
    with pytest.raises(KeyMissing, match="no object 'a/b'"):
        read(store, "a/b")


def test_a_damaged_object_set_aside_makes_room_and_is_kept(store: S3Store) -> None:
    store.put_new("a/b", b"damaged")

    where = store.set_aside("a/b")
    store.put_new("a/b", b"rebuilt")

    assert (store.get(where), store.get("a/b")) == (b"damaged", b"rebuilt")


def test_an_absent_key_may_be_deleted(store: S3Store) -> None:
    store.delete("a/b")

    assert not store.exists("a/b")


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/.hidden", "a b"])
def test_a_key_that_could_be_mangled_is_refused(store: S3Store, key: str) -> None:
    with pytest.raises(ConfigError, match="object key"):
        store.put_new(key, b"x")


# ------------------------------------------------------------------------------------------------ roots


def test_a_bucket_that_arbitrates_may_hold_a_ledger_and_is_left_clean(store: S3Store) -> None:
    prove_root(store.root)

    assert store.list("probes") == []


def test_a_bucket_that_lets_every_writer_win_needs_a_word(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def put_always(self: S3Store, key: str, data: bytes) -> None:
        self.call(key, "put_object", Body=data)

    monkeypatch.setattr(S3Store, "put_new", put_always)

    with pytest.raises(ConfigError, match=r"does not honour If-None-Match.*--sole-writer"):
        prove_root(store.root)
    prove_root(store.root, is_sole_writer=True)


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("s3://", "expected s3://BUCKET"),
        ("s3://Not_A_Bucket/x", "expected s3://BUCKET"),
        ("s3://bucket/a//b", "object key"),
    ],
)
def test_a_root_that_cannot_be_meant_is_refused(root: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_store(root)


def test_credentials_in_a_root_are_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="found credentials in it") as refused:
        open_store("s3://key:hunter2@bucket/x")

    assert "hunter2" not in str(refused.value)


def test_a_bucket_that_is_not_there_is_one_clear_error(bucket: Bucket) -> None:
    with pytest.raises(ConfigError, match=r"s3://no-such-bucket: there is no such bucket; make it, or correct --root"):
        prove_root("s3://no-such-bucket")


def test_a_server_that_is_not_there_is_out_of_reach(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")

    with pytest.raises(StorageUnavailable, match=r"out of reach \(EndpointConnectionError\)"):
        S3Store(bucket.root).get("a")


def test_no_credentials_are_one_clear_error(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))

    with pytest.raises(ConfigError, match="no credentials; set AWS_ACCESS_KEY_ID or a profile"):
        S3Store(bucket.root).get("a")


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("SignatureDoesNotMatch", ConfigError, "the secret key is wrong"),
        ("InvalidAccessKeyId", ConfigError, "the access key is unknown"),
        ("AccessDenied", ConfigError, "grant them read and write"),
        ("AuthorizationHeaderMalformed", ConfigError, "set AWS_REGION"),
        ("QuotaExceeded", StorageFull, "free space"),
        ("SlowDown", StorageUnavailable, "out of reach"),
        ("InternalError", StorageUnavailable, "out of reach"),
        ("503", StorageUnavailable, "out of reach"),
    ],
)
def test_each_refusal_says_what_to_do(
    store: S3Store, monkeypatch: pytest.MonkeyPatch, code: str, kind: type[PrunellaError], message: str
) -> None:
    def refuse(**_arguments: Any) -> None:
        raise ClientError({"Error": {"Code": code}}, "GetObject")

    monkeypatch.setattr(store._client, "get_object", refuse)

    with pytest.raises(kind, match=message):
        store.get("a")


def test_an_answer_that_the_sdk_cannot_parse_is_no_answer(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(**_arguments: Any) -> None:
        raise ValueError("Invalid timestamp: Sat, 21 N")

    monkeypatch.setattr(store._client, "head_object", parse)

    with pytest.raises(StorageUnavailable, match=r"out of reach \(ValueError\)"):
        store.stamp("a")


def test_no_credential_is_ever_logged(store: S3Store, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        prove_root(store.root)
        with pytest.raises(KeyMissing) as missing:
            store.get("a")

    assert "tests-secret" not in caplog.text + str(missing.value)
