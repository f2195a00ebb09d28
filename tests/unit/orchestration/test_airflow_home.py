"""Airflow's database: whether Airflow can speak to it is known before anything is started."""

import sys
from pathlib import Path

import pytest

from prunella.errors import ConfigError
from prunella.orchestration import airflow_home, live

SECRET = "sesame-of-the-database"


@pytest.mark.parametrize("scheme", ["postgresql+psycopg2", "postgresql"])
def test_the_environment_of_make_up_has_the_drivers_of_postgresql(scheme: str) -> None:
    airflow_home.check_drivers(f"{scheme}://prunella:{SECRET}@127.0.0.1:5432/airflow")


def test_a_sqlite_file_needs_nothing_more(tmp_path: Path) -> None:
    airflow_home.check_drivers(f"sqlite:///{tmp_path / 'airflow.db'}")


@pytest.mark.parametrize(
    ("scheme", "found"),
    [
        ("postgresql+pg8000", "No module named 'pg8000'"),
        ("mysql+mysqldb", "No module named 'MySQLdb'"),
        ("mysql+nothing", "Can't load plugin"),
        ("postgres", "Can't load plugin"),
    ],
)
def test_a_driver_that_is_not_there_is_named_with_what_to_do_and_without_the_password(scheme: str, found: str) -> None:
    with pytest.raises(ConfigError) as refused:
        airflow_home.check_drivers(f"{scheme}://prunella:{SECRET}@127.0.0.1/airflow")

    message = str(refused.value)
    assert message.startswith(f"PRUNELLA_DATABASE: expected {scheme}://")
    assert found in message
    assert "write postgresql+psycopg2://USER:PASSWORD@HOST/DATABASE" in message
    assert SECRET not in message


def test_an_address_that_cannot_be_read_is_refused_without_quoting_it() -> None:
    with pytest.raises(ConfigError, match="an address that cannot be read") as refused:
        airflow_home.check_drivers(f"postgresql+psycopg2://prunella@127.0.0.1:{SECRET}/airflow")

    assert SECRET not in str(refused.value)


def test_nothing_is_made_before_the_driver_was_found(tmp_path: Path) -> None:
    settings = live.LiveSettings(
        folder=tmp_path / "up",
        root=str(tmp_path / "up" / "root"),
        airflow_port=1,
        mlflow_port=None,
        database=f"postgresql+pg8000://prunella:{SECRET}@127.0.0.1/airflow",
        python=sys.executable,
    )

    with pytest.raises(ConfigError, match="pg8000"):
        live.start(settings)

    assert list(tmp_path.iterdir()) == []
