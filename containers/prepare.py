"""Run once at the start of the stack: the databases that it needs, and the bucket of its own S3 server.

Makes what is absent and changes nothing that is there. A bucket of yours is never made: a name with a typing error in it would
become one.
"""

import os
import sys
import time
from collections.abc import Callable

import boto3
import psycopg
from botocore.exceptions import BotoCoreError, ClientError
from psycopg import sql
from sqlalchemy.engine import make_url
from sqlalchemy.engine.url import URL

DATABASES = ("PRUNELLA_DATABASE", "MLFLOW_BACKEND_STORE_URI")
#: Time for a server to come up. Source: own choice 2026-11: a first start of PostgreSQL took up to 20 s on a busy machine.
PATIENCE_S = 120.0


def main() -> None:
    for variable in DATABASES:
        address = os.environ.get(variable, "")
        if address.startswith("postgresql"):
            _patiently(variable, lambda address=address: _make_database(make_url(address)))
    if "s3" in os.environ.get("COMPOSE_PROFILES", "").split(","):
        _patiently("PRUNELLA_ROOT", lambda: _make_bucket(os.environ["PRUNELLA_ROOT"]))


def _patiently(variable: str, work: Callable[[], None]) -> None:
    """Servers start together with us: what fails is tried again for a while."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return work()
        except (psycopg.Error, BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                sys.exit(
                    f"{variable} in prunella.env: no use after {PATIENCE_S:g} s: {error}; correct it, or start that server"
                )
            time.sleep(1.0)


def _make_database(url: URL) -> None:
    if _can_connect(url):
        return
    with _connect(url.set(database="postgres")) as connection:
        known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (url.database,)).fetchone()
        if not known:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(url.database or "")))
            print(f"made the database {url.database}", flush=True)


def _can_connect(url: URL) -> bool:
    try:
        _connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def _connect(url: URL) -> "psycopg.Connection[tuple[object, ...]]":
    return psycopg.connect(
        host=url.host, port=url.port or 5432, user=url.username, password=url.password, dbname=url.database, autocommit=True
    )


def _make_bucket(root: str) -> None:
    name = root.removeprefix("s3://").partition("/")[0]
    client = boto3.client("s3")
    try:
        client.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
            raise
        client.create_bucket(Bucket=name, **_place(client.meta.region_name))
        print(f"made the bucket {name}", flush=True)


def _place(region: str) -> dict[str, dict[str, str]]:
    """Where a new bucket lies. S3 wants no word of it in us-east-1, and refuses a bucket elsewhere without one."""
    return {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}


if __name__ == "__main__":
    main()
