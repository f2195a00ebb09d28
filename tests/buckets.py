"""A real HTTP server that speaks S3, for a test: moto's, which honours conditional puts but checks no signatures."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "prunella-tests"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """A bucket, and the environment in which the SDK finds it."""

    root: str
    environment: dict[str, str]


def made_bucket(endpoint: str, root: str, *, key: str, secret: str) -> Bucket:
    """The bucket of a root, made now on a server of this machine."""
    environment = {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",  # and not AWS_DEFAULT_REGION, which is the SDK's own: our pages promise this one
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    credentials = {"aws_access_key_id": key, "aws_secret_access_key": secret}
    name, *_ = root.removeprefix("s3://").split("/")
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **credentials).create_bucket(Bucket=name)
    return Bucket(root=root, environment=environment)


@contextmanager
def moto_bucket(prefix: str = "team/runs") -> Iterator[Bucket]:
    """An empty bucket behind a server of its own."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request is of no use
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield made_bucket(f"http://{host}:{port}", f"s3://{BUCKET}/{prefix}", key="tests", secret="tests-secret")
    finally:
        server.stop()


@contextmanager
def set_in_environment(values: dict[str, str]) -> Iterator[None]:
    """For what reads the environment of this process."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def big_file(folder: Path, size_bytes: int) -> Path:
    """A file of bytes that nobody has seen before."""
    path = folder / "big"
    path.write_bytes(os.urandom(size_bytes))
    return path
