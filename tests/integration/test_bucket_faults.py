"""A bucket behind a network that cuts, delays, refuses and lies: everything arrives whole, once, or is one clear error."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from buckets import Bucket, moto_bucket, set_in_environment
from fault_proxy import Schedule, fault_proxy
from prunella.config import StorageConfig
from prunella.errors import KeyExists, StorageUnavailable
from prunella.storage import RetryingStore, S3Store

MIB = 2**20
PATIENT = StorageConfig(retry_s=60.0, first_delay_s=0.01, max_delay_s=0.05)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with moto_bucket() as made, set_in_environment(made.environment):
        yield made


@pytest.fixture
def root(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path / "scratch"))
    return f"{bucket.root}/{tmp_path.name}"


def behind(address: str, root: str, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", address)
        return S3Store(root)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 5))])
def test_everything_arrives_whole_and_once_whatever_the_network_does(
    bucket: Bucket, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    with fault_proxy(bucket.environment["AWS_ENDPOINT_URL_S3"], seed) as (address, schedule):
        written = _write_and_read(RetryingStore(behind(address, root, monkeypatch), PATIENT), tmp_path, random.Random(seed))

    direct = S3Store(root)
    assert len(schedule.faults) > 10, "the schedule did nothing"
    assert sorted(direct.list("objects")) == sorted(key.removeprefix("objects/") for key in written)
    for key, content in written.items():
        assert direct.get(key) == content, key


def _write_and_read(store: RetryingStore, folder: Path, chance: random.Random) -> dict[str, bytes]:
    """Puts, conditional puts of keys that exist, big files and reads; returns what must be there."""
    written: dict[str, bytes] = {}
    for number in range(40):
        key, content = f"objects/{number}", chance.randbytes(chance.choice([0, 1, 1000, 200_000]))
        if number % 20 == 7:
            content = chance.randbytes(17 * MIB)
            (folder / "big").write_bytes(content)
            store.put_new_file(key, folder / "big")
        else:
            store.put_new(key, content)
        written[key] = content
        known = chance.choice(list(written))
        assert store.get(known) == store.local_path(known).read_bytes() == written[known]
        with pytest.raises(KeyExists):
            store.put_new(known, b"somebody else's")
    return written


def test_a_write_that_was_thrown_away_is_written_again(bucket: Bucket, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with fault_proxy(bucket.environment["AWS_ENDPOINT_URL_S3"], 0) as (address, schedule):
        draws = iter(["lie"])
        monkeypatch.setattr(schedule, "draw", lambda method, _path: (next(draws, "") if method == "PUT" else "", 0.0))

        RetryingStore(behind(address, root, monkeypatch), PATIENT).put_new("a", b"kept")

    assert S3Store(root).get("a") == b"kept"


def test_a_network_that_stays_away_is_one_clear_error(bucket: Bucket, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with fault_proxy(bucket.environment["AWS_ENDPOINT_URL_S3"], 0) as (address, schedule):
        monkeypatch.setattr(schedule, "draw", lambda _method, _path: ("SlowDown", 0.0))
        impatient = StorageConfig(retry_s=0.3, first_delay_s=0.01, max_delay_s=0.05)

        with pytest.raises(StorageUnavailable, match=r"object 'a' is out of reach \(SlowDown\); gave up after 0.3 s"):
            RetryingStore(behind(address, root, monkeypatch), impatient).put_new("a", os.urandom(10))

    assert not S3Store(root).exists("a")


def test_a_seed_determines_the_schedule() -> None:
    first, second = Schedule(seed=3), Schedule(seed=3)

    assert [first.draw("GET", "/") for _ in range(200)] == [second.draw("GET", "/") for _ in range(200)]
    assert set(first.faults) > {"cut the answer", "cut the headers", "500"}
