"""A private, disposable AIRFLOW_HOME: SQLite, no examples, nothing that outlives the invocation. It carries no truth.

Migrating an empty database takes about eight seconds, so a migrated one is kept in the user's cache and copied. The
environment must be set before Airflow is imported for the first time in a process.
"""

import importlib.metadata
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import prunella

logger = logging.getLogger(__name__)


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
    """Create the home and its database, from the cached copy where there is one."""
    home.mkdir(parents=True, exist_ok=True)
    database = home / "airflow.db"
    if database.exists():
        return
    cached = _cached_database()
    if not cached.exists():
        _migrate(cached)
    shutil.copyfile(cached, database)


def make_pool(home: Path, name: str, slots: int) -> None:
    """Create a pool in the home's Airflow, unless it has one of that name: its size is then a person's choice."""
    if _airflow(home, "pools", "get", name).returncode == 0:
        return
    _airflow(home, "pools", "set", name, str(slots), "A slot for each node of the fleet").check_returncode()
    logger.info("airflow_pool_made name=%s slots=%s", name, slots)


def _airflow(home: Path, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "airflow", *arguments]
    return subprocess.run(command, env={**os.environ, **environment(home)}, check=False, capture_output=True)


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
        _airflow(home, "db", "migrate").check_returncode()
        (home / "airflow.db").replace(cached)
    finally:
        shutil.rmtree(home)
