"""A bucket's store on a network that cuts and lies: half an answer is none, a repeated call is harmless, nothing travels twice.

Each test says which request is struck, and how; `tests/integration/test_bucket_faults.py` leaves that to chance.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError
from botocore.utils import parse_timestamp

from buckets import Bucket, big_file, set_in_environment
from fault_proxy import FLIP_ANSWER, FLIP_REQUEST, Schedule, fault_proxy
from prunella.config import StorageConfig
from prunella.errors import KeyExists, StorageUnavailable
from prunella.storage import RetryingStore, S3Store, client, prove_root
from prunella.storage.parts import MAX_PARTS, etag_of_parts, in_parallel
from prunella.storage.refusals import require
from prunella.storage.store import TransferCut

MIB = 2**20
PATIENCE = StorageConfig(retry_s=10.0, first_delay_s=0.001, max_delay_s=0.002)


@pytest.fixture
def store(bucket_store: S3Store) -> S3Store:
    """The store in a bucket, with nothing between it and its server."""
    return bucket_store


@dataclass(frozen=True)
class Network:
    """What lies between `store` and its server."""

    store: S3Store
    schedule: Schedule

    @property
    def patient(self) -> RetryingStore:
        return RetryingStore(self.store, PATIENCE)

    def strike(self, *faults: str, method: str, holds: str = "") -> None:
        """Do these to the next requests of that method whose path holds that, one after another; "" lets one pass."""
        waiting = iter(faults)

        def draw(asked: str, path: str) -> tuple[str, float]:
            return next(waiting, "") if asked == method and holds in path else "", 0.0

        self.schedule.draw = draw  # type: ignore[method-assign]

    def strike_each_once(self, fault: str) -> None:
        """Do this to every request the first time that it is made."""
        made: set[tuple[str, str]] = set()

        def draw(method: str, path: str) -> tuple[str, float]:
            is_new = (method, path) not in made
            made.add((method, path))
            return fault if is_new else "", 0.0

        self.schedule.draw = draw  # type: ignore[method-assign]

    def asked(self, method: str, holds: str = "") -> list[str]:
        return [request for request in self.schedule.requests if request.startswith(f"{method} ") and holds in request]


@pytest.fixture
def network(bucket: Bucket, store: S3Store) -> Iterator[Network]:
    """A network in front of the place that `store` reaches directly."""
    with fault_proxy(bucket.environment["AWS_ENDPOINT_URL_S3"], 0) as (address, schedule):
        schedule.is_off = True
        with set_in_environment({"AWS_ENDPOINT_URL_S3": address}):
            yield Network(store=S3Store(store.root), schedule=schedule)


def unfinished_uploads(store: S3Store) -> list[Any]:
    found: list[Any] = store._client.list_multipart_uploads(Bucket=store._bucket, Prefix=store._prefix).get("Uploads", [])
    return found


# ------------------------------------------------------------------------------------------------ slow links


def test_a_part_that_takes_longer_than_a_connection_may_be_silent_arrives(
    bucket: Bucket, store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = big_file(tmp_path, 32 * MIB)
    monkeypatch.setattr(client, "_CONNECT_TIMEOUT_S", 0.5)
    with fault_proxy(bucket.environment["AWS_ENDPOINT_URL_S3"], 0) as (address, schedule):
        schedule.draw = lambda method, _: ("drip" if method == "PUT" else "", 0.0)  # type: ignore[method-assign]
        with set_in_environment({"AWS_ENDPOINT_URL_S3": address}):
            S3Store(store.root).put_new_file("a/big", path)

    assert store.get("a/big") == path.read_bytes()


# ------------------------------------------------------------------------------------------------ answers that were cut


def put_big(store: S3Store, path: Path) -> object:
    path.write_bytes(bytes(9 * MIB))
    return store.put_new_file("a/big", path)


@pytest.mark.parametrize(
    ("method", "holds", "ask", "lacking"),
    [
        ("PUT", "", lambda store, _: store.put_new("a/new", b"x"), "ETag"),
        ("HEAD", "", lambda store, _: store.put_new("a/new", b"x"), "ETag"),
        ("POST", "uploads", put_big, "UploadId"),
        ("PUT", "partNumber", put_big, "ETag"),
        ("HEAD", "", lambda store, _: store.size_bytes("a/b"), "ETag"),
        ("HEAD", "", lambda store, _: store.stamp("a/b"), "ETag"),
        ("HEAD", "", lambda store, _: store.local_path("a/b"), "ETag"),
        ("GET", "", lambda store, _: store.local_path("a/b"), "ContentRange"),
        ("GET", "", lambda store, _: store.get("a/b"), "ContentLength"),
        ("GET", "", lambda store, _: store.list("a"), "IsTruncated"),
    ],
    ids=["put", "put proven", "begin", "part", "size", "stamp", "copy", "range", "get", "list"],
)
def test_an_answer_cut_inside_its_headers_is_no_answer(
    store: S3Store,
    network: Network,
    tmp_path: Path,
    method: str,
    holds: str,
    ask: Callable[[S3Store, Path], object],
    lacking: str,
) -> None:
    store.put_new("a/b", b"content")
    network.strike("cut the headers", method=method, holds=holds)

    with pytest.raises(StorageUnavailable, match=f"found no whole {lacking}: the answer was cut"):
        ask(network.store, tmp_path / "big")


@pytest.mark.parametrize("fault", ["cut the headers", "cut the answer", "lose the answer", "503"])
def test_what_was_struck_once_is_asked_again_and_whole(network: Network, tmp_path: Path, fault: str) -> None:
    path = big_file(tmp_path, 20 * MIB)
    network.strike_each_once(fault)

    network.patient.put_new("a/small", b"content")
    told = network.patient.put_new_file("a/big", path)

    assert network.patient.get("a/small") == b"content"
    assert network.patient.measure("a/big") == told
    assert network.patient.local_path("a/big").read_bytes() == path.read_bytes()
    assert network.patient.list("a") == ["big", "small"]


def test_a_put_whose_answer_was_lost_knows_its_own_although_the_look_at_it_was_cut(network: Network) -> None:
    faults = {"PUT": iter(["lose the answer"]), "GET": iter(["cut the headers"])}
    network.schedule.draw = lambda method, _: (next(faults.get(method, iter([])), ""), 0.0)  # type: ignore[method-assign]

    network.patient.put_new("a/b", b"mine")

    assert network.store.get("a/b") == b"mine"


@pytest.mark.parametrize("etag", ['"', '"abc', None])
def test_an_etag_that_was_cut_is_none(etag: str | None) -> None:
    with pytest.raises(StorageUnavailable, match="found no whole ETag"):
        require("s3://bucket", "a", {"ETag": etag} if etag else {}, "ETag")


@pytest.mark.parametrize("etag", ['"abc"', "abc"])
def test_an_etag_may_be_quoted_or_not(etag: str) -> None:
    require("s3://bucket", "a", {"ETag": etag}, "ETag")


@pytest.mark.filterwarnings("ignore:tzname")
@pytest.mark.parametrize("header", ["Sun, 22 Nov 2026 10:34:17 GM", "Sun, 22 Nov 2026 10:34:17", "Sun, 22 Nov 2026 10:3"])
def test_a_time_that_was_cut_is_none(header: str) -> None:
    with pytest.raises(StorageUnavailable, match="found no whole LastModified"):
        require("s3://bucket", "a", {"LastModified": parse_timestamp(header)}, "LastModified")


def test_parts_that_are_not_called_by_their_md5_tell_no_etag_of_the_whole() -> None:
    assert etag_of_parts(['"0"', '"not hexadecimal"']) == ""


# ------------------------------------------------------------------------------------------------ files in parts


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
        list(in_parallel(send, range(500)))

    assert len(begun) < 500


def test_an_upload_that_lost_the_race_leaves_no_parts(store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = big_file(tmp_path, 9 * MIB)
    store.put_new("a/big", b"theirs")
    monkeypatch.setattr(store, "find", lambda key: None)  # somebody writes between the look and the commit

    with pytest.raises(KeyExists):
        store.put_new_file("a/big", path)

    assert store.get("a/big") == b"theirs"
    assert unfinished_uploads(store) == []


def test_parts_of_another_file_are_not_taken_for_those_of_this_one(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = store._client.upload_part

    def cut_last(**arguments: Any) -> Any:
        if arguments["PartNumber"] == 2:
            raise EndpointConnectionError(endpoint_url="http://cut")
        return send(**arguments)

    with monkeypatch.context() as patch:
        patch.setattr(store._client, "upload_part", cut_last)
        with pytest.raises(StorageUnavailable):
            store.put_new_file("a/big", big_file(tmp_path, 9 * MIB))
    other = big_file(tmp_path, 9 * MIB)
    store.put_new_file("a/big", other)

    assert store.get("a/big") == other.read_bytes()
    assert unfinished_uploads(store) == []


@pytest.mark.parametrize("n_failing", [1, 5], ids=["one of five parts", "all parts"])
def test_a_cut_says_whether_anything_had_arrived(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_failing: int
) -> None:
    path = big_file(tmp_path, 40 * MIB)
    send, get = store._client.upload_part, store._client.get_object

    def cut_parts(**arguments: Any) -> Any:
        if arguments["PartNumber"] > 5 - n_failing:
            raise EndpointConnectionError(endpoint_url="http://cut")
        return send(**arguments)

    def cut_ranges(**arguments: Any) -> Any:
        if int(arguments["Range"].removeprefix("bytes=").partition("-")[0]) >= (5 - n_failing) * 8 * MIB:
            raise EndpointConnectionError(endpoint_url="http://cut")
        return get(**arguments)

    with monkeypatch.context() as patch:
        patch.setattr(store._client, "upload_part", cut_parts)
        with pytest.raises(StorageUnavailable) as up:
            store.put_new_file("a/big", path)
    store.put_new_file("a/big", path)
    with monkeypatch.context() as patch:
        patch.setattr(store._client, "get_object", cut_ranges)
        with pytest.raises(StorageUnavailable) as down:
            store.measure("a/big")

    has_moved = n_failing < 5
    assert [isinstance(cut.value, TransferCut) for cut in (up, down)] == [has_moved, has_moved]


def test_a_commit_whose_answer_was_lost_is_known_by_its_parts_and_nothing_is_downloaded(
    network: Network, tmp_path: Path
) -> None:
    path = big_file(tmp_path, 20 * MIB)
    network.strike("lose the answer", method="POST", holds="uploadId=")

    told = network.patient.put_new_file("a/big", path, keep_copy=True)

    assert network.asked("GET") == []
    assert len(network.asked("PUT", "partNumber=")) == 3
    assert told.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert network.store.local_path("a/big").samefile(path)


def test_a_commit_whose_answer_was_lost_does_not_take_another_object_for_its_own(
    store: S3Store, network: Network, tmp_path: Path
) -> None:
    path = big_file(tmp_path, 20 * MIB)
    network.strike("503", method="POST", holds="uploadId=")
    with pytest.raises(StorageUnavailable):
        network.store.put_new_file("a/big", path)
    store.put_new("a/big", b"theirs")

    with pytest.raises(KeyExists):
        network.store.put_new_file("a/big", path)

    assert store.get("a/big") == b"theirs"
    assert unfinished_uploads(store) == []


def test_a_commit_that_was_thrown_away_is_repeated_without_sending_a_part_again(
    store: S3Store, network: Network, tmp_path: Path
) -> None:
    path = big_file(tmp_path, 20 * MIB)
    network.strike("lie", method="POST", holds="uploadId=")

    network.patient.put_new_file("a/big", path)

    assert len(network.asked("PUT", "partNumber=")) == 3
    assert store.get("a/big") == path.read_bytes()
    assert unfinished_uploads(store) == []


def test_a_part_that_was_thrown_away_costs_a_new_upload_and_leaves_no_old_one(
    store: S3Store, network: Network, tmp_path: Path
) -> None:
    path = big_file(tmp_path, 20 * MIB)
    network.strike("lie", method="PUT", holds="partNumber=2")

    network.patient.put_new_file("a/big", path)

    assert store.get("a/big") == path.read_bytes()
    assert unfinished_uploads(store) == []


def test_a_refused_commit_whose_reason_was_cut_off_is_no_refusal_for_good(
    store: S3Store, network: Network, tmp_path: Path
) -> None:
    path = big_file(tmp_path, 20 * MIB)
    faults = {"partNumber=2": iter(["lie"]), "uploadId=": iter(["cut the headers"])}

    def draw(method: str, path: str) -> tuple[str, float]:
        holds = "partNumber=2" if method == "PUT" else "uploadId=" if method == "POST" else ""
        return next(faults[holds], "") if holds and holds in path else "", 0.0

    network.schedule.draw = draw  # type: ignore[method-assign]

    network.patient.put_new_file("a/big", path)

    assert [next(fault, None) for fault in faults.values()] == [None, None]
    assert store.get("a/big") == path.read_bytes()


@pytest.mark.parametrize("is_away", [False, True], ids=["parts refused", "all refused"])
def test_when_patience_ends_the_upload_is_aborted_or_the_failure_to_is_told_and_the_error_is_the_first_one(
    store: S3Store, network: Network, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_away: bool
) -> None:
    began = False

    def draw(method: str, path: str) -> tuple[str, float]:
        nonlocal began
        began = began or "partNumber=3" in path
        return "503" if "partNumber=3" in path or (is_away and began) else "", 0.0

    network.schedule.draw = draw  # type: ignore[method-assign]
    impatient = StorageConfig(retry_s=0.1, first_delay_s=0.001, max_delay_s=0.002)

    with pytest.raises(StorageUnavailable, match=r"'a/big' is out of reach \((ServiceUnavailable|503)\); gave up after 0.1 s"):
        RetryingStore(network.store, impatient).put_new_file("a/big", big_file(tmp_path, 20 * MIB))

    assert len(unfinished_uploads(store)) == (1 if is_away else 0)
    assert ("upload_not_aborted key=a/big" in caplog.text) == is_away


# ------------------------------------------------------------------------------------------------ bytes that flip on their way


SIZES = pytest.mark.parametrize("size_bytes", [1000, 20 * MIB], ids=["one part", "three parts"])


@pytest.mark.parametrize("hides_md5", [False, True], ids=["ETags are MD5s", "ETags are no MD5s"])
@SIZES
def test_a_file_whose_byte_flipped_on_its_way_up_is_sent_again(
    store: S3Store, network: Network, tmp_path: Path, size_bytes: int, hides_md5: bool
) -> None:
    path = big_file(tmp_path, size_bytes)
    network.schedule.hides_md5 = hides_md5
    network.strike(FLIP_REQUEST, method="PUT")

    told = network.patient.put_new_file("a/b", path)

    assert store.get("a/b") == path.read_bytes()
    assert told.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len([request for request in network.asked("DELETE") if request.endswith("a/b")]) == 1
    assert unfinished_uploads(store) == []


def test_a_server_that_takes_what_was_not_signed_is_sent_no_part_without_an_md5(
    store: S3Store, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = big_file(tmp_path, 20 * MIB)
    monkeypatch.setattr("prunella.storage.s3.SIGNED_ALONE_BYTES", 20 * MIB)
    network.strike(FLIP_REQUEST, method="PUT", holds="partNumber=2")

    network.patient.put_new_file("a/b", path)

    assert network.asked("PUT", f"partNumber={MAX_PARTS}") != []
    assert len([request for request in network.asked("DELETE") if request.endswith("a/b")]) == 1, (
        "the damaged object was removed"
    )
    assert store.get("a/b") == path.read_bytes()


@SIZES
def test_a_network_that_flips_a_byte_each_time_is_one_clear_error_and_leaves_nothing(
    store: S3Store, network: Network, tmp_path: Path, size_bytes: int
) -> None:
    network.schedule.draw = lambda method, _: (FLIP_REQUEST if method == "PUT" else "", 0.5)  # type: ignore[method-assign]
    impatient = StorageConfig(retry_s=0.1, first_delay_s=0.001, max_delay_s=0.002)

    with pytest.raises(StorageUnavailable, match=r"'a/b': expected the bytes that were sent, .* found others.*; gave up after"):
        RetryingStore(network.store, impatient).put_new_file("a/b", big_file(tmp_path, size_bytes))

    assert not store.exists("a/b")
    assert unfinished_uploads(store) == []


@pytest.mark.parametrize("struck", ["HEAD", "GET", "DELETE"])
def test_an_object_that_arrived_damaged_is_known_although_the_next_request_fails(
    store: S3Store, network: Network, struck: str
) -> None:
    faults = {"PUT": iter([FLIP_REQUEST]), struck: iter(["503"])}
    network.schedule.draw = lambda method, _: (next(faults.get(method, iter([])), ""), 0.5)  # type: ignore[method-assign]

    network.patient.put_new("a/b", b"content")

    assert store.get("a/b") == b"content"


@SIZES
def test_where_etags_are_no_md5s_what_was_put_is_read_back(
    store: S3Store, network: Network, tmp_path: Path, size_bytes: int
) -> None:
    path = big_file(tmp_path, size_bytes)
    network.schedule.hides_md5 = True

    network.store.put_new_file("a/b", path)

    assert network.asked("GET", "a/b") != []
    assert network.asked("DELETE") == []
    assert not network.store.drop_copy("a/b"), "it was read into a copy that nobody asked to keep"
    assert store.get("a/b") == path.read_bytes()


def test_where_etags_are_md5s_nothing_is_read_back(network: Network, tmp_path: Path) -> None:
    network.store.put_new("a/b", b"content")
    network.store.put_new_file("a/big", big_file(tmp_path, 20 * MIB))

    assert network.asked("GET") == []


@SIZES
def test_a_byte_that_flips_on_its_way_down_changes_the_sha256(
    store: S3Store, network: Network, tmp_path: Path, size_bytes: int
) -> None:
    put = store.put_new_file("a/b", big_file(tmp_path, size_bytes))
    network.strike(FLIP_ANSWER, method="GET")

    found = [network.store.measure("a/b"), network.store.drop_copy("a/b"), network.store.measure("a/b")]

    assert found[0] != put
    assert found[1:] == [True, put]


# ------------------------------------------------------------------------------------------------ setting aside


@pytest.mark.parametrize(
    ("fault", "method", "holds"),
    [
        ("lose the answer", "DELETE", ""),
        ("lie", "DELETE", ""),
        ("lose the answer", "PUT", "set-aside/"),
        ("lie", "PUT", "set-aside/"),
        ("cut the headers", "HEAD", "set-aside/"),
    ],
    ids=["deletion unheard of", "deletion thrown away", "copy unheard of", "copy thrown away", "look cut"],
)
def test_setting_aside_may_be_repeated_and_loses_nothing(
    store: S3Store, network: Network, fault: str, method: str, holds: str
) -> None:
    store.put_new("a/b", b"damaged")
    network.strike(fault, method=method, holds=holds)

    where = network.patient.set_aside("a/b")

    assert store.get(where) == b"damaged"
    assert not store.exists("a/b")


def test_nothing_is_deleted_whose_copy_was_thrown_away(store: S3Store, network: Network) -> None:
    store.put_new("a/b", b"damaged")
    network.strike("lie", method="PUT", holds="set-aside/")

    with pytest.raises(StorageUnavailable, match=r"7 bytes, at 'set-aside/.*', found none; nothing was deleted"):
        network.store.set_aside("a/b")

    assert store.get("a/b") == b"damaged"


def test_a_look_of_the_sdk_that_was_cut_while_it_copies_is_no_answer(store: S3Store, network: Network) -> None:
    store.put_new("a/b", b"damaged")
    network.strike("", "", "cut the headers", method="HEAD", holds="a/b")  # of the object, of its new place, then the SDK's

    with pytest.raises(StorageUnavailable, match=r"the answer to its copying lacks 'ContentLength'"):
        network.store.set_aside("a/b")

    assert store.get("a/b") == b"damaged"


# ------------------------------------------------------------------------------------------------ the proof of a root


@pytest.mark.parametrize("fault", ["503", "lose the answer", "cut the headers"])
def test_a_root_is_proven_although_every_request_fails_once_and_is_left_clean(
    store: S3Store, network: Network, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr("prunella.storage._OPENING", PATIENCE)
    network.strike_each_once(fault)

    prove_root(store.root)
    prove_root(store.root, is_sole_writer=True)

    assert store.list("probes") == []
    n_never_heard_of = 0 if fault == "503" else 1  # the server began an upload and its number was lost on the way
    assert len(unfinished_uploads(store)) == n_never_heard_of


def test_a_part_that_was_thrown_away_does_not_pass_for_a_commit_that_was_refused(
    store: S3Store, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunella.storage._OPENING", PATIENCE)
    network.strike("lie", method="PUT", holds="partNumber=")

    prove_root(store.root)

    assert store.list("probes") == []
    assert unfinished_uploads(store) == []
