"""A bucket behind a network that cuts, delays, refuses and lies: everything arrives whole, once, or is one clear error."""

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from buckets import Bucket
from fault_proxy import Schedule, fault_proxy
from prunella.config import StorageConfig
from prunella.errors import KeyExists, StorageUnavailable
from prunella.storage import Content, RetryingStore, S3Store
from radosgw import bucket_by

MIB = 2**20
PATIENT = StorageConfig(retry_s=60.0, first_delay_s=0.01, max_delay_s=0.05)


@pytest.fixture(scope="module", params=["moto", pytest.param("radosgw", marks=pytest.mark.slow)])
def bucket(request: pytest.FixtureRequest) -> Iterator[Bucket]:
    with bucket_by(request.param) as made:
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
        patient = RetryingStore(behind(address, root, monkeypatch), PATIENT)
        written = Workload(patient, tmp_path, random.Random(seed)).run()

    direct = S3Store(root)
    assert len(schedule.faults) > 10, "the schedule did nothing"
    assert direct.list("objects") == sorted(key.removeprefix("objects/") for key in written if key.startswith("objects/"))
    for key, content in written.items():
        assert direct.get(key) == content, key


class Workload:
    """Whatever a store is asked for, at random; every answer is compared with what must be there."""

    def __init__(self, store: RetryingStore, folder: Path, chance: random.Random) -> None:
        self.store, self.folder, self.chance = store, folder, chance
        self.written: dict[str, bytes] = {}

    def run(self) -> dict[str, bytes]:
        """Forty writes, each with something else beside it; returns what must be there."""
        for number in range(40):
            self.write(f"objects/{number}", is_big=number % 20 == 7)
            known = self.chance.choice(list(self.written))
            self.read(known, number)
            with pytest.raises(KeyExists):
                self.store.put_new(known, b"somebody else's")
            if number % 5 == 3:
                self.remove(self.chance.choice(list(self.written)))
        return self.written

    def write(self, key: str, *, is_big: bool) -> None:
        content = self.chance.randbytes(17 * MIB if is_big else self.chance.choice([0, 1, 1000, 200_000]))
        if self.chance.random() < 0.5 or is_big:
            (self.folder / "file").write_bytes(content)
            told = self.store.put_new_file(key, self.folder / "file", keep_copy=self.chance.random() < 0.5)
            (self.folder / "file").unlink()
            assert told == content_of(content)
        else:
            self.store.put_new(key, content)
        self.written[key] = content

    def read(self, key: str, number: int) -> None:
        content = self.written[key]
        assert self.store.get(key) == self.store.local_path(key).read_bytes() == content
        if self.chance.random() < 0.5:
            self.store.drop_copy(key)
        assert self.store.place(key, self.folder / f"placed-{number}") in (None, content_of(content))
        assert (self.folder / f"placed-{number}").read_bytes() == content
        assert self.store.measure(key) == content_of(content)
        assert self.store.stamp(key).at_ns > 0
        assert self.store.exists(key)
        assert not self.store.exists(f"{key}-not")
        names = [key.removeprefix("objects/") for key in self.written if key.startswith("objects/")]
        assert self.store.list("objects") == sorted(names)

    def remove(self, key: str) -> None:
        """Delete it, or set it aside; and half of the time write it anew."""
        if self.chance.random() < 0.5:
            self.store.delete(key)
            del self.written[key]
        else:
            where = self.store.set_aside(key)
            self.written[where] = self.written.pop(key)
        assert not self.store.exists(key)
        if self.chance.random() < 0.5:
            self.write(key, is_big=False)


def content_of(content: bytes) -> Content:
    return Content(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def test_a_write_that_was_thrown_away_is_written_again(bucket: Bucket, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with fault_proxy(bucket.environment["AWS_ENDPOINT_URL_S3"], 0) as (address, schedule):
        draws = iter(["lie"])
        monkeypatch.setattr(schedule, "draw", lambda method, _path: (next(draws, "") if method == "PUT" else "", 0.0))

        RetryingStore(behind(address, root, monkeypatch), PATIENT).put_new("a", b"kept")

    assert S3Store(root).get("a") == b"kept"


def test_a_deletion_that_was_thrown_away_is_done_again(bucket: Bucket, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    S3Store(root).put_new("a", b"old")
    with fault_proxy(bucket.environment["AWS_ENDPOINT_URL_S3"], 0) as (address, schedule):
        draws = iter(["lie"])
        monkeypatch.setattr(schedule, "draw", lambda method, _path: (next(draws, "") if method == "DELETE" else "", 0.0))

        RetryingStore(behind(address, root, monkeypatch), PATIENT).delete("a")

    assert not S3Store(root).exists("a")


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
