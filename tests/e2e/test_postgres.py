"""Airflow as it is deployed: on PostgreSQL, from an environment without torch, with two schedulers that share the work.

Two experiments run at once while any process is killed at random moments, a scheduler among them. What would show that
something ran twice is in the ledger: an attempt opened twice, a step kept twice, a digest that differs.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from e2e.campaign import SEGMENTS, Campaign
from e2e.live_airflow import DAG_ID, LiveAirflow, live_airflow
from e2e.test_airflow_without_torch import PROGRAM
from e2e.test_kill_series import assert_nothing_was_lost, digest_of, kill_until_complete
from postgres import Postgres, postgres_server
from prunella.orchestration import airflow_home

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not PROGRAM.exists(), reason="make orchestrator: Airflow's own environment is not there"),
]
KILLS = 10


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def airflow(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveAirflow]:
    """On an empty database: its migrations are part of the test."""
    postgres.create("airflow")
    monkeypatch.setenv("PRUNELLA_DATABASE", postgres.uri("airflow").replace("postgresql://", "postgresql+psycopg2://"))
    monkeypatch.setenv("PRUNELLA_PYTHON", sys.executable)
    with live_airflow(tmp_path / "live", schedulers=2, python=str(PROGRAM.with_name("python"))) as airflow:
        yield airflow


def test_ten_kills_under_two_schedulers_on_postgresql_run_nothing_twice(
    airflow: LiveAirflow, postgres: Postgres, unbroken: Campaign
) -> None:
    ledger = airflow.open("campaign", segments=SEGMENTS, schedule="continuous")
    airflow.trigger(ledger)
    killed, verified = kill_until_complete(airflow, ledger, random.Random(23), kills=KILLS)

    assert len(killed) == KILLS, killed
    assert_nothing_was_lost(ledger, verified)
    assert digest_of(ledger) == unbroken.digest()
    runs = [name for (name,) in postgres.ask("airflow", f"SELECT run_id FROM dag_run WHERE dag_id = '{DAG_ID}'")]
    assert {run.run_id for segment in range(SEGMENTS) for run in ledger.runs(segment)} <= set(runs)
    assert living_schedulers(airflow) == 2


def test_the_environment_of_make_up_makes_airflows_tables_on_postgresql(postgres: Postgres, tmp_path: Path) -> None:
    postgres.create("of_make_up")
    address = postgres.uri("of_make_up").replace("postgresql://", "postgresql+psycopg2://")

    airflow_home.migrate(airflow_home.environment(tmp_path) | {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": address}, sys.executable)

    assert postgres.ask("of_make_up", "SELECT count(*) FROM dag_run") == [(0,)]


def living_schedulers(airflow: LiveAirflow) -> int:
    """Schedulers that run; the supervisor starts those again that were killed."""
    pids = {name: pid for name, pid in airflow.supervisor.pids.items() if name.startswith("scheduler")}
    return sum(psutil.pid_exists(pid) for pid in pids.values())
