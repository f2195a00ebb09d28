"""How fast a big file goes to a bucket and comes back, digests included, beside boto3's own transfers in the same run.

Run by hand:

    .venv/bin/python tests/benchmarks/bucket_speed.py              # a server of its own (moto: slow, and the same for both)
    .venv/bin/python tests/benchmarks/bucket_speed.py s3://BUCKET  # yours; the SDK's settings say where it is

Each way is measured in turn, `ROUNDS` times, and the best time counts. boto3 gets the best of several TransferConfigs.
"""

import argparse
import contextlib
import hashlib
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

sys.path.insert(0, str(Path(__file__).parents[1]))

from buckets import moto_bucket, set_in_environment
from prunella.storage import S3Store

MIB = 2**20
ROUNDS = 3
CONFIGS = {
    f"{concurrency} x {chunk_mib} MiB": TransferConfig(max_concurrency=concurrency, multipart_chunksize=chunk_mib * MIB)
    for concurrency in (10, 20)
    for chunk_mib in (8, 32)
}


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", help="s3://BUCKET/PREFIX; a server of its own by default")
    parser.add_argument("--mib", type=int, default=256, help="size of the file")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        root = given.root
        if root is None:
            bucket = stack.enter_context(moto_bucket())
            stack.enter_context(set_in_environment(bucket.environment))
            root = bucket.root
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["PRUNELLA_SCRATCH"] = str(folder / "scratch")
        measure(root, folder, given.mib)


def measure(root: str, folder: Path, mib: int) -> None:
    """Both ways up and down."""
    source, target = folder / "source", folder / "target"
    with source.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))
    store = S3Store(root)
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    client = boto3.client("s3", config=Config(max_pool_connections=40))

    def key() -> str:
        return f"benchmark/{uuid.uuid4().hex}"

    def digest(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def put() -> None:
        digest(source)
        store.put_new_file(key(), source)

    def get() -> None:
        path = store.local_path(ours)
        digest(path)
        path.unlink()

    def upload(config: TransferConfig | None = None) -> str:
        name = f"{prefix}/{key()}".lstrip("/")
        client.upload_file(str(source), bucket, name, Config=config)
        return name

    ours, theirs = key(), upload()
    store.put_new_file(ours, source)
    up = {name: best(lambda config=config: upload(config)) for name, config in CONFIGS.items()}
    down = {
        name: best(lambda config=config: client.download_file(bucket, theirs, str(target), Config=config))
        for name, config in CONFIGS.items()
    }
    print(f"{'':10}{'Prunella':>12}{'boto3':>12}  ratio  boto3's best")
    for way, own, others in (("upload", best(put), up), ("download", best(get), down)):
        name = min(others, key=others.__getitem__)
        print(f"{way:10}{mib / own:8.0f} MiB/s{mib / others[name]:6.0f} MiB/s {others[name] / own:6.2f}  {name}")


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest round."""
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


if __name__ == "__main__":
    main()
