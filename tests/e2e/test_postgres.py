"""Airflow as it is deployed: on PostgreSQL, from an environment without torch, with two schedulers that share the work.

Two experiments run at once while processes are killed at random moments, a scheduler first. That nothing ran twice is read
where it would show: in the ledger (runs and attempts beside each other, a stage started beside itself, a step kept twice, a
digest that differs) and in Airflow's database (runs that took nothing up).
"""

import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.campaign import SEGMENTS, Campaign
from e2e.live_airflow import DAG_ID, LiveAirflow, downgrade, live_airflow
from e2e.test_airflow_without_torch import PROGRAM
from e2e.test_kill_series import assert_nothing_ran_twice, assert_nothing_was_lost, digest_of, kill_until_complete
from postgres import Postgres, postgres_server
from prunella.ledger import Ledger
from prunella.orchestration import airflow_home, live

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not PROGRAM.exists(), reason="make orchestrator: Airflow's own environment is not there"),
]
KILLS = 10
EXPERIMENTS = ("first", "second")
#: When each job of a scheduler queued its first and its last task, of every try that Airflow remembers.
QUEUED = """
SELECT queued_by_job_id, min(queued_dttm), max(queued_dttm)
FROM (
  SELECT queued_by_job_id, queued_dttm FROM task_instance
  UNION ALL SELECT queued_by_job_id, queued_dttm FROM task_instance_history
) AS tries
JOIN job ON job.id = queued_by_job_id AND job.job_type = 'SchedulerJob'
GROUP BY queued_by_job_id
"""


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


def test_ten_kills_of_two_experiments_under_two_schedulers_on_postgresql_run_nothing_twice(
    airflow: LiveAirflow, postgres: Postgres, unbroken: Campaign
) -> None:
    ledgers = [airflow.open(name, segments=SEGMENTS, schedule="continuous") for name in EXPERIMENTS]
    for ledger in ledgers:
        airflow.trigger(ledger)
    killed, verified = kill_until_complete(airflow, ledgers, random.Random(23), kills=KILLS, first="airflow scheduler")

    assert len(killed) == KILLS, killed
    assert were_at_work_at_once(*ledgers)
    for ledger in ledgers:
        assert_nothing_was_lost(ledger, verified[ledger.name])
        assert_nothing_ran_twice(ledger)
        assert digest_of(ledger) == unbroken.digest()
    assert_a_dag_run_for_each_claim(ledgers, postgres)
    assert scheduled_at_once(postgres), postgres.ask("airflow", QUEUED)


def were_at_work_at_once(one: Ledger, other: Ledger) -> bool:
    """Whether some run of the one was open while some run of the other was."""
    return any(
        mine[0] < theirs[1] and theirs[0] < mine[1] for mine, theirs in itertools.product(closed_runs(one), closed_runs(other))
    )


def closed_runs(ledger: Ledger) -> Iterator[tuple[int, int]]:
    """When each run was opened, and when it closed."""
    for run in (run for segment in range(SEGMENTS) for run in ledger.runs(segment)):
        close = ledger.closed(run.segment, run.run_index)
        if close is not None:
            yield close.opened_ns, close.closed_ns


def assert_a_dag_run_for_each_claim(ledgers: list[Ledger], postgres: Postgres) -> None:
    """Airflow has the runs that took a segment up, each of them once, and else only such as ended before they could."""
    states = dict(postgres.ask("airflow", f"SELECT run_id, state FROM dag_run WHERE dag_id = '{DAG_ID}'"))
    claimed = [run.run_id for ledger in ledgers for segment in range(SEGMENTS) for run in ledger.runs(segment)]

    assert len(set(claimed)) == len(claimed), claimed
    assert set(claimed) == {run_id for run_id in states if not was_replaced(run_id, states)}


def was_replaced(run_id: str, states: dict[str, str]) -> bool:
    """Whether a run ended before it took its segment up, so that there is another in its place (`advance.free_run_id`)."""
    run, _, unclaimed = run_id.rpartition("__r")[2].partition("-")
    successor = f"{run_id.rpartition('__r')[0]}__r{run}-{int(unclaimed or 0) + 1}"
    return states[run_id] == "failed" and successor in states


def scheduled_at_once(postgres: Postgres) -> bool:
    """Whether two schedulers queued tasks in turn. One that took the place of another begins after that one's last."""
    spans = [(first, last) for _, first, last in postgres.ask("airflow", QUEUED)]
    return any(a[0] < b[1] and b[0] < a[1] for a, b in itertools.combinations(spans, 2))


def test_the_environment_of_make_up_makes_airflows_tables_on_postgresql(postgres: Postgres, tmp_path: Path) -> None:
    postgres.create("of_make_up")
    address = postgres.uri("of_make_up").replace("postgresql://", "postgresql+psycopg2://")

    airflow_home.migrate(airflow_home.environment(tmp_path) | {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": address}, sys.executable)

    assert postgres.ask("of_make_up", "SELECT count(*) FROM dag_run") == [(0,)]


def test_a_database_that_is_a_revision_older_is_migrated_when_airflow_is_started(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres.create("older")
    monkeypatch.setenv("PRUNELLA_DATABASE", postgres.uri("older").replace("postgresql://", "postgresql+psycopg2://"))
    settings = live.settings_for(tmp_path / "up", with_mlflow=False)
    live.start(settings)
    head, older = downgrade(live.environment(settings))
    before = postgres.ask("older", "SELECT version_num FROM alembic_version")

    live.start(settings)

    assert before == [(older,)]
    assert postgres.ask("older", "SELECT version_num FROM alembic_version") == [(head,)]
