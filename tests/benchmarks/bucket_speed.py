"""How fast a big file goes to a bucket and comes back, digests included, beside boto3's own transfers in the same run.

Run by hand:

    .venv/bin/python tests/benchmarks/bucket_speed.py --server radosgw --mib 1024  # a Ceph of its own, in memory
    .venv/bin/python tests/benchmarks/bucket_speed.py --server moto                # slow, and the same for both
    .venv/bin/python tests/benchmarks/bucket_speed.py --root s3://BUCKET           # yours; the SDK's settings say where it is

All ways take turns, `--rounds` times, and the best time of each counts. Prunella proves a sha256 each way, boto3 proves nothing
and gets the best of several TransferConfigs; both go without the SDK's checksums, which cost boto3 time.
"""

import argparse
import contextlib
import hashlib
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

sys.path.insert(0, str(Path(__file__).parents[1]))

from buckets import Bucket, moto_bucket, set_in_environment
from prunella.storage import S3Store
from radosgw import radosgw_server

MIB = 2**20
CONFIGS = {
    f"{concurrency} x {chunk_mib} MiB": TransferConfig(max_concurrency=concurrency, multipart_chunksize=chunk_mib * MIB)
    for concurrency in (2, 4, 10, 20)
    for chunk_mib in (8, 32)
}
#: Between two ways: what the one before left to do (clearing away its object) is not the next one's.
PAUSE_S = 1.0


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", choices=["moto", "radosgw"], default="moto", help="which server of its own")
    parser.add_argument("--root", help="s3://BUCKET/PREFIX of yours instead")
    parser.add_argument("--mib", type=int, default=256, help="size of the file")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is measured")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["PRUNELLA_SCRATCH"] = str(folder / "scratch")
        root = given.root or stack.enter_context(server_of_its_own(given.server, given.mib)).root
        Measurement(root, folder, given.mib).run(given.rounds)


@contextlib.contextmanager
def server_of_its_own(name: str, mib: int) -> Iterator[Bucket]:
    """A bucket, with the environment set to it."""
    with contextlib.ExitStack() as stack:
        if name == "moto":
            bucket = stack.enter_context(moto_bucket())
        else:
            # Room for the objects of both, for one on its way, and for one that is being cleared away.
            bucket = stack.enter_context(radosgw_server(size_bytes=6 * mib * MIB)).bucket()
        stack.enter_context(set_in_environment(bucket.environment))
        yield bucket


@dataclass(kw_only=True)
class Way:
    """One way to move the file, how to clear away what it made, and its seconds so far."""

    work: Callable[[], object]
    clear: Callable[[], object]
    best_s: float = float("inf")

    def measure(self) -> None:
        started = time.perf_counter()
        self.work()
        self.best_s = min(self.best_s, time.perf_counter() - started)
        self.clear()
        time.sleep(PAUSE_S)


class Measurement:
    """Both ways up and down, of one file."""

    def __init__(self, root: str, folder: Path, mib: int) -> None:
        self.mib, self.source, self.target = mib, folder / "source", folder / "target"
        with self.source.open("wb") as file:
            for _ in range(mib):
                file.write(os.urandom(MIB))
        self.sha256 = digest(self.source)
        self.store = S3Store(root)
        checksums = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
        self.client = boto3.client("s3", config=Config(max_pool_connections=40, **checksums))
        self.bucket, _, prefix = root.removeprefix("s3://").partition("/")
        self.key = f"benchmark/{uuid.uuid4().hex}"
        self.name = f"{prefix}/{self.key}-boto3".lstrip("/")

    def run(self, rounds: int) -> None:
        """Upload, leave one object, download, and print the table."""
        self.turns("upload", rounds, self.upload(), {name: self.upload_boto3(config) for name, config in CONFIGS.items()})
        self.put()
        downloads = {name: self.download_boto3(config) for name, config in CONFIGS.items()}
        self.turns("download", rounds, self.download(), downloads)
        self.store.delete(self.key)

    def turns(self, direction: str, rounds: int, own: Way, others: dict[str, Way]) -> None:
        """All ways in turn; prints the line of Prunella beside the fastest other, then every other."""
        for _ in range(rounds):
            for way in (own, *others.values()):
                way.measure()
        name = min(others, key=lambda name: others[name].best_s)
        speeds = {"Prunella": own.best_s, **{other: way.best_s for other, way in others.items()}}
        print(f"{direction}, {self.mib} MiB, best of {rounds}: {others[name].best_s / own.best_s:.2f} of boto3's best ({name})")
        for other, seconds in speeds.items():
            print(f"    {other:12} {seconds:6.2f} s {self.mib / seconds:5.0f} MiB/s", flush=True)

    def put(self) -> None:
        assert self.store.put_new_file(self.key, self.source).sha256 == self.sha256

    def get(self) -> None:
        assert self.store.measure(self.key).sha256 == self.sha256

    def upload(self) -> Way:
        return Way(work=self.put, clear=lambda: self.store.delete(self.key))

    def download(self) -> Way:
        return Way(work=self.get, clear=lambda: self.store.drop_copy(self.key))

    def upload_boto3(self, config: TransferConfig) -> Way:
        def work() -> None:
            self.client.upload_file(str(self.source), self.bucket, self.name, Config=config)

        return Way(work=work, clear=lambda: self.client.delete_object(Bucket=self.bucket, Key=self.name))

    def download_boto3(self, config: TransferConfig) -> Way:
        name = self.name.removesuffix("-boto3")

        def work() -> None:
            self.client.download_file(self.bucket, name, str(self.target), Config=config)

        return Way(work=work, clear=self.target.unlink)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
