"""What the environment holds in confidence is found nowhere: no record, report, log or database has it, and scratch neither."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from buckets import BUCKET, moto_bucket
from e2e.campaign import Campaign
from e2e.conftest import SECRET, SECRETS
from e2e.live_airflow import DAG_ID, LiveAirflow, live_airflow, wait_until_complete
from postgres import Postgres, postgres_server
from prunella.orchestration.progress import incidents
from prunella.orchestration.publishing import published
from waiting import wait_until


def test_no_secret_of_the_environment_is_written_anywhere(unbroken: Campaign) -> None:
    files = [path for path in unbroken.folder.rglob("*") if path.is_file()]

    kinds = {path.suffix for path in files}
    assert {".json", ".log", ".db", ".html"} <= kinds, "too little was looked at"
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


# ------------------------------------------------------------------------------------------------ a bucket, a live Airflow


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        server.create("airflow")
        yield server


@pytest.fixture
def airflow(tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveAirflow]:
    """Airflow on PostgreSQL, its ledger in a bucket: the credentials of both are secrets that it works with."""
    with moto_bucket() as bucket:
        database = postgres.uri("airflow").replace("postgresql://", "postgresql+psycopg2://")
        own = {"PRUNELLA_PUBLISHED": str(tmp_path / "live" / "published"), "PRUNELLA_DATABASE": database}
        for name, value in (bucket.environment | own | dict.fromkeys(SECRETS, SECRET)).items():
            monkeypatch.setenv(name, value)
        with live_airflow(tmp_path / "live", root=bucket.root) as airflow:
            yield airflow


def objects() -> dict[str, bytes]:
    """Every object of the bucket, by key."""
    found = boto3.resource("s3").Bucket(BUCKET).objects.all()
    return {entry.key: entry.get()["Body"].read() for entry in found}


def rows(postgres: Postgres) -> dict[str, bytes]:
    """Every row of every table of Airflow's database as PostgreSQL writes it, by table."""
    tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"
    names = [name for (name,) in postgres.ask("airflow", tables)]
    written = {name: postgres.ask("airflow", f'SELECT t::text FROM "{name}" AS t') for name in names}
    return {name: "\n".join(text for (text,) in found).encode() for name, found in written.items()}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_rank_under_a_live_airflow_writes_no_secret_to_bucket_database_logs_or_scratch(
    airflow: LiveAirflow, postgres: Postgres
) -> None:
    ledger = airflow.open("secretive", segments=1, schedule="manual", faults=("kill:rank=1,step=5",))
    run_id = airflow.trigger(ledger)
    wait_until_complete(ledger, 600.0)
    wait_until(lambda: airflow.api.run_states(DAG_ID)[run_id] == "success", "the DAG run ended")
    wait_until(lambda: published(ledger), "its publication is there")

    folder = airflow.settings.folder
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found = {"bucket": objects(), "database": rows(postgres), "files": files}

    assert [incident.diagnosis.cause for _, _, incident in incidents(ledger)] == ["process_crash"]
    for name in ("xcom", "rendered_task_instance_fields", "dag_run", "log", "task_instance"):
        assert found["database"][name], f"table {name}: too little was looked at"
    for part in ("airflow/logs/dag_id=pretrain_segment/", "scratch/", "published/"):
        assert any(name.startswith(part) for name in files), f"{part}: too little was looked at"
    assert f"experiments/{ledger.name}/experiment.json" in " ".join(found["bucket"]), "too little was looked at"
    secrets = [secret.encode() for secret in (SECRET, postgres.password)]
    forms = [*secrets, *(secret.hex().encode() for secret in secrets)]  # so PostgreSQL writes bytes
    entries = [(where, name, text) for where, texts in found.items() for name, text in texts.items()]
    assert [(where, name) for where, name, text in entries if any(form in text for form in forms)] == []
