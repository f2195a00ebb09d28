"""A bucket of a real Ceph: the promises of the store hold where signatures, quotas and regions are enforced."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from buckets import Bucket, big_file, set_in_environment
from fault_proxy import FLIP_REQUEST, Schedule, fault_proxy
from prunella.config import StorageConfig
from prunella.errors import ConfigError, KeyExists, KeyMissing, StorageFull
from prunella.storage import RetryingStore, S3Store, prove_root
from prunella.storage.parts import MAX_PARTS
from radosgw import Radosgw, radosgw_server

MIB = 2**20
PATIENT = StorageConfig(retry_s=60.0, first_delay_s=0.01, max_delay_s=0.05)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Radosgw]:
    with radosgw_server() as made:
        yield made


@pytest.fixture(scope="module")
def bucket(gateway: Radosgw) -> Iterator[Bucket]:
    made = gateway.bucket()
    with set_in_environment(made.environment):
        yield made


@pytest.fixture
def store(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """A store under a prefix of its own."""
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path / "scratch"))
    return S3Store(f"{bucket.root}/{tmp_path.name}")


# ------------------------------------------------------------------------------------------------ promises


@pytest.mark.parametrize("size_bytes", [0, 100_000, 8 * MIB, 20 * MIB + 17], ids=["empty", "small", "one part", "three parts"])
def test_what_was_put_is_what_is_got(store: S3Store, tmp_path: Path, size_bytes: int) -> None:
    path = big_file(tmp_path, size_bytes)

    told = store.put_new_file("a/file", path)

    assert store.measure("a/file") == told
    assert store.get("a/file") == store.local_path("a/file").read_bytes() == path.read_bytes()
    assert store.size_bytes("a/file") == size_bytes
    assert store.list("a") == ["file"]


@pytest.mark.parametrize("size_bytes", [10, 9 * MIB], ids=["one part", "several parts"])
def test_a_key_is_written_once(store: S3Store, tmp_path: Path, size_bytes: int) -> None:
    path = big_file(tmp_path, size_bytes)
    store.put_new("a/b", b"first")

    with pytest.raises(KeyExists, match="'a/b' exists already"):
        store.put_new("a/b", b"second")
    with pytest.raises(KeyExists):
        store.put_new_file("a/b", path)

    assert store.get("a/b") == b"first"


def test_a_listing_of_several_pages_is_whole(store: S3Store) -> None:
    names = [f"{number:04d}" for number in range(1001)]
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda name: store.put_new(f"many/{name}", b""), names))

    assert store.list("many") == names
    assert store.list("none") == []


def test_absence_is_told_from_failure(store: S3Store) -> None:
    for read in (store.get, store.size_bytes, store.stamp, store.local_path):
        with pytest.raises(KeyMissing, match="no object 'a/b'"):
            read("a/b")
    store.delete("a/b")

    assert not store.exists("a/b")


def test_a_damaged_object_set_aside_makes_room_and_is_kept(store: S3Store) -> None:
    store.put_new("a/b", b"damaged")

    where = store.set_aside("a/b")
    store.put_new("a/b", b"rebuilt")

    assert (store.get(where), store.get("a/b")) == (b"damaged", b"rebuilt")


# ------------------------------------------------------------------------------------------------ refusals


def test_a_gateway_that_commits_over_what_is_there_asks_for_a_sole_writer_and_is_left_clean(store: S3Store) -> None:
    with pytest.raises(ConfigError, match=r"an upload in parts replaced an object .* If-None-Match.*--sole-writer"):
        prove_root(store.root)
    prove_root(store.root, is_sole_writer=True)

    assert store.list("probes") == []
    assert store._client.list_multipart_uploads(Bucket=store._bucket).get("Uploads", []) == []


FIRST: dict[str, Callable[[S3Store, Path], object]] = {
    "get": lambda store, _: store.get("a/b"),
    "size": lambda store, _: store.size_bytes("a/b"),
    "exists": lambda store, _: store.exists("a/b"),
    "put": lambda store, _: store.put_new("a/b", bytes(1000)),
    "put a file": lambda store, folder: store.put_new_file("a/b", big_file(folder, 1000)),
    "put a big file": lambda store, folder: store.put_new_file("a/b", big_file(folder, 9 * MIB)),
    "list": lambda store, _: store.list("a"),
    "prove": lambda store, _: prove_root(store.root),
}
first = pytest.mark.parametrize("ask", FIRST.values(), ids=FIRST.keys())


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "not-the-secret"}, r"the secret key is wrong; check AWS_SECRET_ACCESS_KEY or the profile"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, r"the access key is unknown there; check AWS_ACCESS_KEY_ID or the profile"),
    ],
    ids=["wrong secret", "unknown key"],
)
@first
def test_credentials_that_are_wrong_are_one_clear_error_of_the_first_request(
    bucket: Bucket, tmp_path: Path, environment: dict[str, str], message: str, ask: Callable[[S3Store, Path], object]
) -> None:
    with set_in_environment(environment), pytest.raises(ConfigError, match=message) as refused:
        ask(S3Store(bucket.root), tmp_path)

    assert "not-the-secret" not in str(refused.value)


@first
def test_a_bucket_that_is_not_there_is_one_clear_error_of_the_first_request(
    bucket: Bucket, tmp_path: Path, ask: Callable[[S3Store, Path], object]
) -> None:
    with pytest.raises(ConfigError, match=r"s3://no-such-bucket: there is no such bucket; make it, or correct --root"):
        ask(S3Store("s3://no-such-bucket"), tmp_path)


def test_a_bucket_of_somebody_else_is_one_clear_error(gateway: Radosgw, bucket: Bucket, tmp_path: Path) -> None:
    theirs = gateway.bucket("theirs")

    for ask in FIRST.values():
        with pytest.raises(ConfigError, match="these credentials may not do that; grant them read and write on the bucket"):
            ask(S3Store(theirs.root), tmp_path)


@pytest.mark.parametrize("first", ["put", "put a file", "put a big file"])
def test_the_first_write_to_a_full_bucket_is_one_clear_error(gateway: Radosgw, tmp_path: Path, first: str) -> None:
    full = gateway.bucket(f"full-{first.replace(' ', '-')}", quota_bytes=1)

    with set_in_environment(full.environment):
        with pytest.raises(StorageFull, match=r"no room for object 'a/b' \(QuotaExceeded\); free space and run again"):
            FIRST[first](S3Store(full.root), tmp_path)

        assert not S3Store(full.root).exists("a/b")


def test_a_bucket_that_is_full_is_one_clear_error_and_leaves_no_parts(
    gateway: Radosgw, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path / "scratch"))
    path = big_file(tmp_path, 20 * MIB)
    small = gateway.bucket("small", quota_bytes=4 * MIB)  # less than a part: parts side by side do not see each other

    with set_in_environment(small.environment):
        store = RetryingStore(S3Store(small.root), PATIENT)
        with pytest.raises(StorageFull, match=r"no room for object 'a/big' \(QuotaExceeded\); free space and run again"):
            store.put_new_file("a/big", path)
        direct = S3Store(small.root)
        uploads = direct._client.list_multipart_uploads(Bucket="small").get("Uploads", [])

        assert (direct.exists("a/big"), uploads) == (False, [])


# ------------------------------------------------------------------------------------------------ cuts


def part_number(path: str) -> int | None:
    """Of a request that sends a part."""
    numbers = parse_qs(urlsplit(path).query).get("partNumber")
    return int(numbers[0]) if numbers else None


def parts_sent(schedule: Schedule) -> Counter[int]:
    """How often each part was begun to be sent."""
    numbers = [part_number(request.partition(" ")[2]) for request in schedule.requests]
    return Counter(number for number in numbers if number is not None)


@pytest.mark.parametrize("fault", ["cut the request", FLIP_REQUEST])
def test_an_upload_of_which_a_part_was_cut_or_damaged_sends_that_part_again_and_no_other(
    bucket: Bucket, store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    path = big_file(tmp_path, 100 * MIB)
    with fault_proxy(bucket.environment["AWS_ENDPOINT_URL_S3"], 0) as (address, schedule):
        cuts = iter([fault])
        monkeypatch.setattr(schedule, "draw", lambda _, path: (next(cuts, "") if part_number(path) == 5 else "", 0.5))
        with set_in_environment({"AWS_ENDPOINT_URL_S3": address}):
            RetryingStore(S3Store(store.root), PATIENT).put_new_file("a/big", path)

    assert parts_sent(schedule) == Counter(range(1, 14)) + Counter([5])
    assert store.get("a/big") == path.read_bytes()


def test_a_server_that_checks_what_was_signed_is_found_out_and_believed_of_each_part(
    bucket: Bucket, store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = big_file(tmp_path, 20 * MIB)
    monkeypatch.setattr("prunella.storage.s3.SIGNED_ALONE_BYTES", 20 * MIB)
    monkeypatch.setattr("prunella.storage.bucket.etag_of", lambda _: pytest.fail("an MD5 was computed"))
    with fault_proxy(bucket.environment["AWS_ENDPOINT_URL_S3"], 0) as (address, schedule):
        flips = iter([FLIP_REQUEST])
        monkeypatch.setattr(schedule, "draw", lambda _, path: (next(flips, "") if part_number(path) == 2 else "", 0.5))
        with set_in_environment({"AWS_ENDPOINT_URL_S3": address}):
            RetryingStore(S3Store(store.root), PATIENT).put_new_file("a/big", path)

    assert parts_sent(schedule) == Counter([1, 2, 2, 3, MAX_PARTS])
    assert store.get("a/big") == path.read_bytes()


def test_an_upload_goes_on_after_an_outage_with_the_parts_that_had_not_arrived(
    bucket: Bucket, store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = big_file(tmp_path, 200 * MIB)
    arrived: set[int] = set()
    again: set[int] = set()
    with fault_proxy(bucket.environment["AWS_ENDPOINT_URL_S3"], 0) as (address, schedule):
        lock, outage = threading.Lock(), iter(["503"] * 30)

        def draw(_method: str, path: str) -> tuple[str, float]:
            """From the tenth part on nothing gets through for thirty requests."""
            with lock:
                fault = next(outage, "") if len(arrived) >= 10 else ""
                number = part_number(path)
                if number is not None:
                    again.update({number} & arrived)
                    arrived.update(set() if fault else {number})
                return fault, 0.0

        monkeypatch.setattr(schedule, "draw", draw)
        with set_in_environment({"AWS_ENDPOINT_URL_S3": address}):
            RetryingStore(S3Store(store.root), PATIENT).put_new_file("a/big", path)

    assert next(outage, None) is None, "there was no outage"
    assert (arrived, again) == (set(range(1, 26)), set())
    assert store.get("a/big") == path.read_bytes()


def test_a_download_whose_connection_was_cut_asks_for_that_part_again_and_no_other(
    bucket: Bucket, store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = big_file(tmp_path, 100 * MIB)
    put = store.put_new_file("a/big", path)
    with fault_proxy(bucket.environment["AWS_ENDPOINT_URL_S3"], 0) as (address, schedule):
        cuts = iter(["cut the answer"])
        monkeypatch.setattr(schedule, "draw", lambda method, _: (next(cuts, "") if method == "GET" else "", 0.5))
        with set_in_environment({"AWS_ENDPOINT_URL_S3": address}):
            found = RetryingStore(S3Store(store.root), PATIENT).measure("a/big")

    gets = [request for request in schedule.requests if request.startswith("GET ")]
    assert len(gets) == 13 + 1
    assert found == put
