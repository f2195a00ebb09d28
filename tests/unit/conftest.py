"""A bucket for the tests that want one, and a store in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from buckets import Bucket, moto_bucket, set_in_environment
from prunella.storage import S3Store


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    """A bucket behind a server of its own, where the SDK finds it."""
    with moto_bucket() as made, set_in_environment(made.environment):
        yield made


@pytest.fixture
def bucket_store(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """A store under a prefix of its own, whose local copies lie where a test can damage them."""
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path / "scratch"))
    return S3Store(f"{bucket.root}/{tmp_path.name}")
