"""A real PostgreSQL server for a test: data, port and password of its own, and gone afterwards.

It runs from Debian's programs, never from the cluster that Debian may have started. PostgreSQL refuses to run as root, so root
lends it the user `nobody`, and for the same reason its data lies beside pytest's folders, which only their owner may enter.
"""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from prunella.node_processes import free_port
from waiting import wait_until

OWNER = "prunella"
#: Debian keeps the server of each version in a folder of its own, outside PATH.
DEBIAN = Path("/usr/lib/postgresql")
PATIENCE_S = 60.0
#: A test's data need not survive the machine, and the machine is small.
SETTINGS = {"fsync": "off", "max_connections": "50", "shared_buffers": "32MB", "listen_addresses": "127.0.0.1"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Postgres:
    """A server that answers on loopback."""

    port: int
    password: str = field(repr=False)

    def uri(self, database: str) -> str:
        """How SQLAlchemy is told of it; it holds the password."""
        return f"postgresql://{OWNER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def create(self, *databases: str) -> None:
        """New, empty databases."""
        with psycopg.connect(self.uri("postgres"), autocommit=True) as connection:
            for database in databases:
                connection.execute(f'CREATE DATABASE "{database}"'.encode())

    def ask(self, database: str, question: str) -> list[tuple[Any, ...]]:
        """The rows that answer a question."""
        with psycopg.connect(self.uri(database)) as connection:
            return connection.execute(question.encode()).fetchall()


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A server with no databases of ours. Skips where its programs are not installed."""
    programs = _programs()
    with _folder() as folder:
        found = Postgres(port=free_port(), password=secrets.token_urlsafe(16))
        _initialise(programs, folder, found.password)
        with (folder / "server.log").open("wb") as log:
            settings = [f"--{name}={value}" for name, value in (SETTINGS | {"unix_socket_directories": str(folder)}).items()]
            command = [str(programs / "postgres"), "-D", str(folder / "data"), "-p", str(found.port), *settings]
            server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, **_identity())
        try:
            _wait_until_it_answers(found, server)
            yield found
        finally:
            server.send_signal(signal.SIGINT)  # its fast shutdown: sends clients away
            server.wait(30.0)


def _programs() -> Path:
    """Where `initdb` and `postgres` lie; of several versions, the newest."""
    versions = sorted(DEBIAN.glob("*/bin/postgres"), key=lambda path: int(path.parent.parent.name))
    on_path = shutil.which("postgres")
    found = versions[-1] if versions else on_path and Path(on_path)
    if not found:
        pytest.skip("make system: PostgreSQL's server programs are not installed")
    return found.parent


def _identity() -> dict[str, Any]:
    """Whom the server runs as."""
    if os.getuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder of the server's user; a short name, because a socket's path has 107 characters at most."""
    folder = Path(tempfile.mkdtemp(prefix="prunella-postgres-"))
    try:
        identity = _identity()
        if identity:
            os.chown(folder, identity["user"], identity["group"])
        yield folder
    finally:
        shutil.rmtree(folder)


def _initialise(programs: Path, folder: Path, password: str) -> None:
    secret = folder / "password"
    secret.touch(mode=0o600)
    secret.write_text(password)
    if identity := _identity():
        os.chown(secret, identity["user"], identity["group"])
    options = ["--username", OWNER, "--auth=scram-sha-256", "--pwfile", str(secret), "--encoding=UTF8", "--no-locale"]
    command = [str(programs / "initdb"), "-D", str(folder / "data"), *options, "--no-sync", "--no-instructions"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False, **_identity())
    assert done.returncode == 0, done.stderr
    secret.unlink()


def _wait_until_it_answers(found: Postgres, server: subprocess.Popen[bytes]) -> None:
    def answers() -> bool:
        try:
            psycopg.connect(found.uri("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    wait_until(answers, "the server answers", timeout_s=PATIENCE_S, command=server)
