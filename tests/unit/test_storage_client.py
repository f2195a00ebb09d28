"""Which client a bucket's store makes of the environment; a setting that cannot be meant is one clear error.

No server is asked: the request is caught before it is sent.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from prunella.errors import ConfigError
from prunella.storage import S3Store, open_store
from prunella.storage.parts import Upload

ROOT = "s3://bucket/x"


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "PRUNELLA_"))]:
        monkeypatch.delenv(name)
    settings = {
        "PRUNELLA_SCRATCH": str(tmp_path / "scratch"),
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests-secret",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


class _AskedError(Exception):
    """In place of an answer: the URL."""


def url_asked_for(key: str) -> str:
    """What the store behind `ROOT` asks its server for."""
    store = S3Store(ROOT)

    def catch(request: Any, **_arguments: Any) -> None:
        raise _AskedError(request.url)

    store._client.meta.events.register("before-send.s3.HeadObject", catch)
    with pytest.raises(_AskedError) as asked:
        store.exists(key)
    return str(asked.value)


@pytest.mark.parametrize("endpoint", ["http://s3.example.com", "https://s3.example.com"])
def test_what_is_put_is_signed_by_its_md5_alone_and_everything_else_whole(
    monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    store, requests = S3Store(ROOT), list[Any]()

    def catch(request: Any, **_arguments: Any) -> None:
        requests.append(request)
        raise _AskedError(request.url)

    store._client.meta.events.register("before-send.s3", catch)
    for ask in (
        lambda: store.put_new("a/b", b"content"),
        lambda: store.commit("a/b", Upload(upload_id="1", done={1: '"e"'})),
    ):
        with pytest.raises(_AskedError):
            ask()

    put, commit = (request.headers for request in requests)
    assert put["X-Amz-Content-SHA256"] == b"UNSIGNED-PAYLOAD"
    assert b"content-md5;" in put["Authorization"]
    assert commit["X-Amz-Content-SHA256"] == hashlib.sha256(requests[1].body).hexdigest().encode()


@pytest.mark.parametrize(
    ("environment", "region"),
    [
        ({"AWS_REGION": "eu-north-1"}, "eu-north-1"),
        ({"AWS_REGION": "eu-north-1", "AWS_DEFAULT_REGION": "us-west-2"}, "eu-north-1"),
        ({"AWS_DEFAULT_REGION": "us-west-2"}, "us-west-2"),
        ({"AWS_REGION": "", "AWS_DEFAULT_REGION": "us-west-2"}, "us-west-2"),
    ],
    ids=["ours", "both", "the SDK's", "empty"],
)
def test_the_region_is_aws_region_else_what_the_sdk_finds(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], region: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert S3Store(ROOT)._client.meta.region_name == region
    assert url_asked_for("a/b") == f"https://bucket.s3.{region}.amazonaws.com/x/a/b"


@pytest.mark.parametrize(
    ("style", "endpoint", "url"),
    [
        ("path", "https://s3.example.com", "https://s3.example.com/bucket/x/a/b"),
        ("virtual", "https://s3.example.com", "https://bucket.s3.example.com/x/a/b"),
        ("auto", "https://s3.example.com", "https://s3.example.com/bucket/x/a/b"),
        ("", "https://s3.example.com", "https://s3.example.com/bucket/x/a/b"),
        ("path", "", "https://s3.eu-north-1.amazonaws.com/bucket/x/a/b"),
        ("virtual", "", "https://bucket.s3.eu-north-1.amazonaws.com/x/a/b"),
    ],
)
def test_a_bucket_is_addressed_by_path_or_by_host_as_asked(
    monkeypatch: pytest.MonkeyPatch, style: str, endpoint: str, url: str
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    monkeypatch.setenv("PRUNELLA_S3_STYLE", style)
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)

    assert url_asked_for("a/b") == url


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("AWS_PROFILE", "typo", r"--root s3://bucket/x: expected AWS_PROFILE to name a profile .*\(typo\).*; correct it or"),
        ("AWS_ENDPOINT_URL", "localhost:9000", r"expected AWS_ENDPOINT_URL like https://HOST:PORT, found: .*localhost:9000"),
        ("AWS_REGION", "not a region", r"'not a region'.*; correct AWS_REGION or the AWS configuration files"),
        ("PRUNELLA_S3_STYLE", "foo", r"PRUNELLA_S3_STYLE: expected one of auto, path, virtual, found 'foo'; correct it"),
        ("PRUNELLA_CACHE_BYTES", "8GiB", r"PRUNELLA_CACHE_BYTES: expected a whole number of bytes, found '8GiB'; write it out"),
        ("PRUNELLA_CACHE_BYTES", "-1", r"PRUNELLA_CACHE_BYTES: expected a whole number of bytes, found '-1'"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError, match=message):
        open_store(ROOT)


def test_a_password_in_an_endpoint_that_cannot_be_meant_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "user:hunter2@localhost:9000")

    with pytest.raises(ConfigError, match="expected AWS_ENDPOINT_URL like") as refused:
        open_store(ROOT)

    assert "hunter2" not in str(refused.value)
