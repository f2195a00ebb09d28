"""The store in a bucket keeps the promises of the store in a folder, and says of each failure what to do."""

import errno
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from buckets import Bucket, big_file, moto_bucket, set_in_environment
from prunella.config import StorageConfig
from prunella.errors import ConfigError, KeyExists, KeyMissing, PrunellaError, StorageFull, StorageUnavailable
from prunella.storage import Content, RetryingStore, S3Store, open_store, prove_root, s3
from prunella.storage.cache import ObjectCache

MIB = 2**20
PATIENCE = StorageConfig(retry_s=2.0, first_delay_s=0.001, max_delay_s=0.002)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with moto_bucket() as made, set_in_environment(made.environment):
        yield made


@pytest.fixture
def store(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """A store under a prefix of its own."""
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path / "scratch"))
    return S3Store(f"{bucket.root}/{tmp_path.name}")


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
        self._call(key, "put_object", Body=data)

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


def test_no_credential_is_ever_logged(store: S3Store, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        prove_root(store.root)
        with pytest.raises(KeyMissing) as missing:
            store.get("a")

    assert "tests-secret" not in caplog.text + str(missing.value)


# ------------------------------------------------------------------------------------------------ cuts


def test_a_put_that_was_cut_sends_only_the_missing_parts_again(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = big_file(tmp_path, 40 * MIB)
    sent: list[int] = []
    send = store._client.upload_part

    def cut_once(**arguments: Any) -> Any:
        number = arguments["PartNumber"]
        sent.append(number)
        if number == 3 and sent.count(3) == 1:
            raise EndpointConnectionError(endpoint_url="http://cut")
        return send(**arguments)

    monkeypatch.setattr(store._client, "upload_part", cut_once)

    told = RetryingStore(store, PATIENCE).put_new_file("a/big", path)

    assert sorted(sent) == [1, 2, 3, 3, 4, 5]
    assert told.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert store.get("a/big") == path.read_bytes()


@pytest.mark.parametrize("is_replaced", [False, True], ids=["the same object", "another object"])
def test_a_download_that_was_cut_asks_only_for_the_missing_parts_of_the_same_object(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_replaced: bool
) -> None:
    path = big_file(tmp_path, 40 * MIB)
    store.put_new_file("a/big", path)
    asked: list[str] = []
    get = store._client.get_object

    def cut_once(**arguments: Any) -> Any:
        asked.append(arguments["Range"])
        if len(asked) == 3:
            raise EndpointConnectionError(endpoint_url="http://cut")
        return get(**arguments)

    monkeypatch.setattr(store._client, "get_object", cut_once)
    with pytest.raises(StorageUnavailable):
        store.measure("a/big")
    if is_replaced:
        path = big_file(tmp_path, 40 * MIB)
        store.delete("a/big")
        store.put_new_file("a/big", path)

    told = store.measure("a/big")

    assert told.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(asked) == 5 + (5 if is_replaced else 1)
    assert [file.name for file in (tmp_path / "scratch").rglob("*.cut")] == []


def test_of_many_parts_the_first_failure_is_raised_and_the_rest_not_begun() -> None:
    begun: list[int] = []

    def send(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise StorageUnavailable("cut")
        time.sleep(0.02)

    with pytest.raises(StorageUnavailable, match="cut"):
        list(s3._in_parallel(send, range(500)))

    assert len(begun) < 500


def test_a_put_whose_commit_was_answered_too_late_finds_its_own_object(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = big_file(tmp_path, 9 * MIB)
    commit = store._client.complete_multipart_upload
    answers = iter([EndpointConnectionError(endpoint_url="http://cut")])

    def lose_the_answer(**arguments: Any) -> Any:
        done = commit(**arguments)
        if (error := next(answers, None)) is not None:
            raise error
        return done

    monkeypatch.setattr(store._client, "complete_multipart_upload", lose_the_answer)

    told = RetryingStore(store, PATIENCE).put_new_file("a/big", path)

    assert told == store.measure("a/big")
    assert store.get("a/big") == path.read_bytes()


def test_an_upload_that_lost_the_race_leaves_no_parts(store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = big_file(tmp_path, 9 * MIB)
    monkeypatch.setattr(store, "exists", lambda key: False)  # somebody writes between the look and the commit
    store.put_new("a/big", b"theirs")

    with pytest.raises(KeyExists):
        store.put_new_file("a/big", path)

    assert store.get("a/big") == b"theirs"
    assert store._client.list_multipart_uploads(Bucket=store._bucket, Prefix=store._key("a/big")).get("Uploads", []) == []


# ------------------------------------------------------------------------------------------------ local copies


def test_an_object_is_fetched_once(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put_new("a/b", b"content")
    first = store.local_path("a/b")
    monkeypatch.setattr(store, "_fetch", lambda *_: pytest.fail("fetched again"))

    assert store.local_path("a/b") == first


def test_an_object_that_was_replaced_is_fetched_again(store: S3Store) -> None:
    store.put_new("a/b", b"old")
    store.local_path("a/b")

    store.delete("a/b")
    store.put_new("a/b", b"new")

    assert store.local_path("a/b").read_bytes() == b"new"


def test_the_longest_unused_copies_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path))
    cache = ObjectCache("s3://bucket", limit_bytes=250)
    copies = {name: cache.file(name, "v1", lambda path: path.write_bytes(bytes(100)) and None) for name in ("a", "b")}
    os.utime(copies["a"], ns=(1, 1))
    os.utime(copies["b"], ns=(2, 2))

    cache.file("a", "v1", lambda path: pytest.fail("it is there"))
    cache.file("c", "v1", lambda path: path.write_bytes(bytes(100)) and None)

    assert [copies["a"].exists(), copies["b"].exists()] == [True, False]


def test_a_copy_in_use_stays_whatever_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path))
    cache = ObjectCache("s3://bucket", limit_bytes=250)

    copies = [cache.file(name, "v1", lambda path: path.write_bytes(bytes(100)) and None) for name in "abcd"]

    assert all(path.exists() for path in copies)


def test_a_copy_that_was_cut_short_does_not_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path))
    cache = ObjectCache("s3://bucket", limit_bytes=250)

    def cut(path: Path) -> None:
        path.write_bytes(b"half")
        raise StorageUnavailable("cut")

    with pytest.raises(StorageUnavailable):
        cache.file("a", "v1", cut)

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("size_bytes", [10, 9 * MIB], ids=["one part", "several parts"])
def test_a_file_that_was_put_is_kept_as_the_copy_where_asked(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    path = big_file(tmp_path, size_bytes)
    monkeypatch.setattr(store, "_fetch", lambda *_: pytest.fail("fetched"))

    store.put_new_file("a/b", path, keep_copy=True)

    assert store.local_path("a/b").samefile(path)


def test_a_file_that_was_put_is_copied_to_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_paths: Path) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(os, "link", link)
    (tmp_path / "file").write_bytes(b"content")
    cache = ObjectCache("s3://bucket", limit_bytes=250)

    cache.adopt("a", "v1", tmp_path / "file")

    assert cache.file("a", "v1", lambda _: pytest.fail("it is there")).read_bytes() == b"content"


def test_a_copy_that_cannot_be_kept_fails_no_put(store: S3Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "scratch").write_text("a file where a folder should be")
    path = big_file(tmp_path, 10)

    store.put_new_file("a/b", path, keep_copy=True)

    assert store.get("a/b") == path.read_bytes()
    assert "copy_not_kept key=a/b" in caplog.text


def test_a_copy_goes_with_its_object(store: S3Store, tmp_path: Path) -> None:
    store.put_new_file("a/b", big_file(tmp_path, 10), keep_copy=True)
    copy = store.local_path("a/b")

    store.delete("a/b")

    assert not copy.exists()
    assert not store.drop_copy("a/b")


def test_kept_copies_nobody_used_obey_the_limit_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path / "scratch"))
    cache = ObjectCache("s3://bucket", limit_bytes=250)

    for name in "abc":
        (tmp_path / name).write_bytes(bytes(100))
        cache.adopt(name, "v1", tmp_path / name)

    assert [cache.drop(name) for name in "abc"] == [False, True, True]


def test_of_copies_in_many_folders_the_last_by_name_stay_and_those_in_use(store: S3Store, tmp_path: Path) -> None:
    for name in ("0000", "0001", "0002", "0003"):
        store.put_new_file(f"all/{name}/file", big_file(tmp_path, 10), keep_copy=True)
        (tmp_path / "big").unlink()
    store.local_path("all/0001/file")  # somebody reads it

    store.limit_copies("all", newest=1)

    assert [store.drop_copy(f"all/{name}/file") for name in ("0000", "0001", "0002", "0003")] == [False, True, False, True]
