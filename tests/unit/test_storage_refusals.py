"""Whichever request meets a refusal first, it is one clear error that names the next step, and absence is never one.

Ceph's own refusals (keys, secrets, quotas) are in `tests/integration/test_radosgw.py`; here are those of moto, those that the
SDK finds in its settings, and, out of a proxy, codes that neither gives.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import UnauthorizedSSOTokenError

from buckets import Bucket, big_file, set_in_environment
from fault_proxy import REFUSE, Schedule, fault_proxy
from prunella.config import StorageConfig
from prunella.errors import ConfigError, KeyMissing, PrunellaError, StorageFull, StorageUnavailable
from prunella.storage import RetryingStore, S3Store
from prunella.storage.client import make_client

MIB = 2**20
FIRST: dict[str, Callable[[S3Store, Path], object]] = {
    "get": lambda store, _: store.get("a/b"),
    "size": lambda store, _: store.size_bytes("a/b"),
    "exists": lambda store, _: store.exists("a/b"),
    "put": lambda store, _: store.put_new("a/b", b"content"),
    "put a file": lambda store, folder: store.put_new_file("a/b", big_file(folder, 1000)),
    "put a big file": lambda store, folder: store.put_new_file("a/b", big_file(folder, 9 * MIB)),
    "list": lambda store, _: store.list("a"),
}
first = pytest.mark.parametrize("ask", FIRST.values(), ids=FIRST.keys())


@pytest.fixture(scope="module")
def proxy(bucket: Bucket) -> Iterator[tuple[str, Schedule]]:
    """Between the stores of this file and their server."""
    with fault_proxy(bucket.environment["AWS_ENDPOINT_URL_S3"], 0) as made:
        yield made


@pytest.fixture(scope="module")
def client(proxy: tuple[str, Schedule]) -> Any:
    """One for all stores behind the proxy: to make one takes longer than what is tried with it."""
    with set_in_environment({"AWS_ENDPOINT_URL_S3": proxy[0]}):
        return make_client("s3://prunella-tests")


@pytest.fixture
def schedule(proxy: tuple[str, Schedule], monkeypatch: pytest.MonkeyPatch) -> Schedule:
    """What happens to requests: nothing, until a test says so."""
    monkeypatch.setattr(proxy[1], "draw", lambda _method, _path: ("", 0.0))
    proxy[1].requests.clear()
    return proxy[1]


@pytest.fixture
def store(bucket: Bucket, client: Any, schedule: Schedule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """A store behind the proxy that has asked for nothing yet."""
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr("prunella.storage.bucket.make_client", lambda _root: client)
    return S3Store(f"{bucket.root}/{tmp_path.name}")


# ------------------------------------------------------------------------------------------------ real servers


@first
def test_a_bucket_that_is_not_there_is_told_by_the_first_request(
    store: S3Store, tmp_path: Path, ask: Callable[[S3Store, Path], object]
) -> None:
    with pytest.raises(ConfigError, match=r"s3://no-such-bucket: there is no such bucket; make it, or correct --root"):
        ask(S3Store("s3://no-such-bucket"), tmp_path)


def test_an_absent_key_is_absent_for_the_first_request(store: S3Store) -> None:
    assert not store.exists("a/b")
    for read in (S3Store.get, S3Store.size_bytes, S3Store.stamp, S3Store.local_path):
        with pytest.raises(KeyMissing, match="no object 'a/b'"):
            read(S3Store(store.root), "a/b")


def test_that_there_is_a_bucket_is_asked_once_and_only_for_an_absent_key(store: S3Store, schedule: Schedule) -> None:
    fresh = S3Store(store.root)

    store.put_new("a/b", b"content")
    known = [store.exists(key) for key in ("a/b", "a/c", "a/c")]
    n_known = len(schedule.requests)
    unknown = [fresh.exists(key) for key in ("a/c", "a/c", "a/b")]

    assert known == [True, False, False]
    assert n_known == 2 + 3  # the put, and a look at it; three looks
    assert unknown == [False, False, True]
    assert len(schedule.requests) == n_known + 3 + 1


# ------------------------------------------------------------------------------------------------ settings of the SDK


SIGN_IN = "sso_start_url = https://example.com/nobody\nsso_region = us-east-1\nsso_account_id = 1\nsso_role_name = r\n"


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("credential_process = /bin/false", r"source of credentials gave none; check its .*\(CredentialRetrievalError\)"),
        (SIGN_IN, r"sign-in of the profile has expired or is not there; sign in again .*\(SSOTokenLoadError\)"),
        ("", r"no credentials; set AWS_ACCESS_KEY_ID or a profile"),
    ],
    ids=["process", "single sign-on", "none"],
)
def test_credentials_that_cannot_be_had_are_one_clear_error(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str, message: str
) -> None:
    (tmp_path / "config").write_text(f"[default]\n{profile}\n")
    for name, value in {"AWS_CONFIG_FILE": tmp_path / "config", "PRUNELLA_SCRATCH": tmp_path}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)

    for ask in FIRST.values():
        with pytest.raises(ConfigError, match=message):
            ask(S3Store(bucket.root), tmp_path)


def test_a_sign_in_that_ends_while_it_is_used_is_one_clear_error(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(**_arguments: Any) -> None:
        raise UnauthorizedSSOTokenError

    monkeypatch.setattr(store._client, "head_object", end)

    with pytest.raises(ConfigError, match=r"sign in again .*\(UnauthorizedSSOTokenError\)"):
        store.exists("a/b")


# ------------------------------------------------------------------------------------------------ codes out of a proxy


REFUSALS = [
    (400, "ExpiredToken", ConfigError, r"the session token has expired; sign in again"),
    (400, "InvalidToken", ConfigError, r"the session token is not valid there; sign in again, or unset AWS_SESSION_TOKEN"),
    (403, "RequestTimeTooSkewed", ConfigError, r"this machine's clock is not the server's; set it"),
    (403, "SignatureDoesNotMatch", ConfigError, r"the secret key is wrong; check AWS_SECRET_ACCESS_KEY"),
    (403, "InvalidAccessKeyId", ConfigError, r"the access key is unknown there; check AWS_ACCESS_KEY_ID"),
    (403, "AccessDenied", ConfigError, r"these credentials may not do that; grant them read and write on the bucket"),
    (400, "AuthorizationHeaderMalformed", ConfigError, r"the region is wrong; set AWS_REGION"),
    (403, "InvalidObjectState", ConfigError, r"the object was moved to an archive; restore it"),
    (404, "NoSuchBucket", ConfigError, r"there is no such bucket; make it, or correct --root"),
    (501, "NotImplemented", ConfigError, r"the server does not know a request that a ledger needs"),
    (400, "BadRequest", ConfigError, r"refuses the request and does not say why; check AWS_ENDPOINT_URL_S3"),
    (507, "InsufficientStorage", StorageFull, r"no room for object 'a.*'.*; free space and run again"),
    (507, "XMinioStorageFull", StorageFull, r"no room for object 'a.*'.*; free space and run again"),
    (503, "SlowDown", StorageUnavailable, r"object 'a.*' is out of reach"),
]


@pytest.mark.parametrize(("status", "code", "kind", "message"), REFUSALS, ids=[code for _, code, *_ in REFUSALS])
@first
def test_a_refusal_is_told_by_the_first_request(
    store: S3Store,
    schedule: Schedule,
    tmp_path: Path,
    status: int,
    code: str,
    kind: type[PrunellaError],
    message: str,
    ask: Callable[[S3Store, Path], object],
) -> None:
    schedule.draw = lambda _method, _path: (REFUSE.format(status, code), 0.0)  # type: ignore[method-assign]

    with pytest.raises(kind, match=message):
        ask(store, tmp_path)


@pytest.mark.parametrize("status", [400, 403])
def test_a_look_that_is_refused_once_is_tried_again(store: S3Store, schedule: Schedule, status: int) -> None:
    store.put_new("a/b", b"content")
    faults = {"HEAD": iter([REFUSE.format(status, "AccessDenied")])}
    schedule.draw = lambda method, _path: (next(faults.get(method, iter([])), ""), 0.0)  # type: ignore[method-assign]

    assert RetryingStore(store, StorageConfig(first_delay_s=0.001, max_delay_s=0.002)).size_bytes("a/b") == 7
