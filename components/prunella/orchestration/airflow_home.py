"""A private, disposable AIRFLOW_HOME: SQLite, no examples, nothing that outlives the invocation. It carries no truth.

Migrating an empty database takes about eight seconds, so a migrated one is kept in the user's cache and copied. The
environment must be set before Airflow is imported for the first time in a process.
"""

import contextlib
import importlib.metadata
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import prunella
from prunella.errors import ConfigError, PrunellaError

logger = logging.getLogger(__name__)

#: The driver by which Airflow asks a database asynchronously, whichever its address names. Source: `airflow.settings` 3.3.2.
_ASYNCHRONOUS = {"postgresql": "asyncpg", "mysql": "aiomysql", "sqlite": "aiosqlite"}
#: Run by Airflow's own Python: says what keeps it from speaking to these addresses. They hold passwords, so they are no
#: arguments, and of an error that may quote one only our own words are shown.
_IMPORT_DRIVERS = """
import os
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
for address in os.environ["PRUNELLA_ADDRESSES"].split():
    try:
        make_url(address).get_dialect().import_dbapi()
    except Exception as error:
        print(error if isinstance(error, (ImportError, SQLAlchemyError)) else "an address that cannot be read")
"""


def dags_folder() -> Path:
    """Where the DAG files lie: beside the package in a checkout, inside it in an installed wheel."""
    inside = Path(prunella.__file__).parent / "dags"
    return inside if inside.is_dir() else Path(prunella.__file__).parents[2] / "dags"


def environment(home: Path) -> dict[str, str]:
    """Variables that make `home` a self-contained Airflow."""
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags_folder()),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "false",
    }


def prepare(home: Path) -> None:
    """Create the home and its database, from the cached copy where there is one. One that an older Airflow made is migrated.

    Raises:
        PrunellaError: its database cannot be brought up to date, with Airflow's last words.
    """
    home.mkdir(parents=True, exist_ok=True)
    database, cached = home / "airflow.db", _cached_database()
    if not cached.exists():
        _migrate(cached)
    if not database.exists():
        shutil.copyfile(cached, database)
    elif _revision(database) != _revision(cached):
        migrate(environment(home))
        logger.info("airflow_database_migrated file=%s", database)


def _revision(database: Path) -> str | None:
    """The revision of a SQLite database's schema; None where it says none. Asking Airflow would take seconds at every start."""
    try:
        with contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.DatabaseError:
        return None
    return str(found[0]) if found else None


def make_pool(name: str, slots: int, variables: dict[str, str], python: str = sys.executable) -> None:
    """Create a pool in an Airflow, unless it has one of that name: its size is then a person's choice.

    Raises:
        PrunellaError: Airflow refused, with its last words.
    """
    if _airflow(["pools", "get", name], variables, python).returncode == 0:
        return
    done = _airflow(["pools", "set", name, str(slots), "A slot for each node of the fleet"], variables, python)
    if done.returncode:
        raise PrunellaError(f"Airflow made no pool {name}: {_last_words(done)}")
    logger.info("airflow_pool_made name=%s slots=%s", name, slots)


def check_drivers(database: str, python: str = sys.executable) -> None:
    """Return quietly when Airflow under this Python has what it takes to speak to a database.

    Args:
        database: its address, as SQLAlchemy writes it.

    Raises:
        ConfigError: a driver is missing, or the address names none that SQLAlchemy knows.
    """
    scheme, _, rest = database.partition(":")
    name = scheme.partition("+")[0]
    addresses = [database, *([f"{name}+{_ASYNCHRONOUS[name]}:{rest}"] if name in _ASYNCHRONOUS else [])]
    variables = {**os.environ, "PRUNELLA_ADDRESSES": "\n".join(addresses)}
    done = subprocess.run([python, "-c", _IMPORT_DRIVERS], env=variables, check=False, capture_output=True, text=True)
    said = done.stderr.splitlines()[-1:] if done.returncode else done.stdout.splitlines()[:1]
    if said:
        raise ConfigError(
            f"PRUNELLA_DATABASE: expected {scheme}:// to be a database that {python} has the drivers for, found: {said[0]}; "
            "write postgresql+psycopg2://USER:PASSWORD@HOST/DATABASE, or run `make setup` if it is that"
        )


def migrate(variables: dict[str, str], python: str = sys.executable) -> None:
    """Bring Airflow's database up to this Airflow's schema.

    Raises:
        PrunellaError: it could not be done, with Airflow's last words.
    """
    done = _airflow(["db", "migrate"], variables, python)
    if done.returncode:
        raise PrunellaError(
            f"Airflow's database could not be migrated; does it run, and does it let us in? {_last_words(done)}"
        )


def _airflow(arguments: list[str], variables: dict[str, str], python: str) -> "subprocess.CompletedProcess[str]":
    command = [python, "-m", "airflow", *arguments]
    return subprocess.run(command, env={**os.environ, **variables}, check=False, capture_output=True, text=True)


def _last_words(done: "subprocess.CompletedProcess[str]") -> str:
    return "\n".join(done.stderr.strip().splitlines()[-3:])


def _cached_database() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "prunella" / f"airflow-{importlib.metadata.version('apache-airflow')}.db"


def _migrate(cached: Path) -> None:
    """Migrate an empty database beside the cache, then move it there at once, so that two processes cannot mix theirs."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    home = cached.parent / f"migrating-{os.getpid()}"
    home.mkdir()
    logger.info("airflow_database_migrated_first_time folder=%s", cached.parent)
    try:
        migrate(environment(home))
        (home / "airflow.db").replace(cached)
    finally:
        shutil.rmtree(home)
