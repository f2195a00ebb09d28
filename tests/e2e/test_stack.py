"""The stack of containers, moved to a bucket, a PostgreSQL and data of one's own by editing its one file.

It runs already, on other databases and without text of its own, when the file is edited and the stack is asked for again.
"""

import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from buckets import Bucket, moto_bucket, set_in_environment
from e2e.campaign import CONFIGURATION
from e2e.live_airflow import DAG_ID, wait_until_complete
from engine import engine_with
from postgres import Postgres, postgres_server
from prunella.data_prep.sources import stdlib_folder
from prunella.errors import Cause
from prunella.launch.images import TRAINER, WORKER
from prunella.ledger import Ledger, open_ledger
from prunella.orchestration import live
from prunella.orchestration.airflow_api import AirflowApi
from prunella.orchestration.progress import incidents
from waiting import wait_until

SCRIPT = Path(__file__).resolve().parents[2] / "containers" / "stack.py"
AIRFLOW = "airflow"
RUNS = f"SELECT state FROM dag_run WHERE dag_id = '{DAG_ID}'"
PATIENCE_S = 120.0
OPTIONS = CONFIGURATION.replace('inputs = ["builtin:stdlib"]\n', "")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stack_moves_to_own_bucket_postgresql_and_data_by_its_one_file_also_while_it_runs(tmp_path: Path) -> None:
    books = write_books(tmp_path / "books")
    with engine_with(TRAINER, WORKER, AIRFLOW), postgres_server() as server, moto_bucket() as bucket:
        Path(os.environ["DOCKER_HOST"].removeprefix("unix://")).chmod(0o660)  # as systemd's and Docker's are
        file = tmp_path / "prunella.env"
        stack(file, tmp_path / "stack", "config")
        edited(file, own_services(bucket, server, books) | databases(server, "first_airflow", "first_mlflow"))
        with running(file), set_in_environment(bucket.environment):
            settings = edited(file, {"PRUNELLA_DATA": str(books)} | databases(server, "airflow", "mlflow"))
            assert "Airflow  http://127.0.0.1:" in stack(file, tmp_path / "stack")
            ledger = train(settings, bucket)

            assert ledger.config().data.inputs == (str(books),)
            assert [incident.diagnosis.cause for _, _, incident in incidents(ledger)] == [Cause.PROCESS_CRASH]
            assert ends_of_runs(server) == ["success", "success"]
            assert server.ask("mlflow", "SELECT count(*) FROM experiments WHERE name = 'prunella'") == [(1,)]
            assert "prunella" in pages_of_mlflow(settings)


def write_books(folder: Path) -> Path:
    """Some text that belongs to nobody else, for the user of the containers to read."""
    folder.mkdir(mode=0o755)
    for source in sorted(stdlib_folder().glob("*.py"))[:40]:
        (folder / f"{source.stem}.txt").write_text(source.read_text())
    return folder


def own_services(bucket: Bucket, server: Postgres, books: Path) -> dict[str, str]:
    """What a person writes into the file, but for the text and the databases, and a name of this stack's own."""
    return {
        "COMPOSE_PROFILES": "mlflow",
        "COMPOSE_PROJECT_NAME": f"prunella-test-{secrets.token_hex(4)}",
        "PRUNELLA_ROOT": bucket.root,
        "AWS_ENDPOINT_URL": bucket.environment["AWS_ENDPOINT_URL_S3"],
        "AWS_REGION": bucket.environment["AWS_REGION"],
        "AWS_ACCESS_KEY_ID": bucket.environment["AWS_ACCESS_KEY_ID"],
        "AWS_SECRET_ACCESS_KEY": bucket.environment["AWS_SECRET_ACCESS_KEY"],
        "PRUNELLA_DATA_FOLDER": str(books),
    }


def databases(server: Postgres, airflow: str, mlflow: str) -> dict[str, str]:
    """None of them is there yet."""
    return {
        "PRUNELLA_DATABASE": server.uri(airflow).replace("postgresql:", "postgresql+psycopg2:"),
        "MLFLOW_BACKEND_STORE_URI": server.uri(mlflow),
    }


def edited(file: Path, changes: dict[str, str]) -> dict[str, str]:
    """The file with these lines changed; returns all it says."""
    text = file.read_text()
    for name, value in changes.items():
        line = f"{name}={value}"
        text, count = re.subn(rf"^{name}=.*$", lambda _, line=line: line, text, flags=re.MULTILINE)
        text = text if count else f"{text}{line}\n"
    file.write_text(text)
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def stack(file: Path, folder: Path, *words: str) -> str:
    command = [sys.executable, str(SCRIPT), "--env", str(file), "--folder", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def running(file: Path) -> Iterator[None]:
    """The services up, though Airflow has only begun to make its database, and gone afterwards."""
    folder = file.parent / "stack"
    try:
        stack(file, folder, "up", "-d")
        passwords = folder / "airflow" / "airflow" / "passwords.json"
        wait_until(passwords.exists, "Airflow made its passwords", timeout_s=PATIENCE_S)
        yield
    except AssertionError as error:
        error.add_note(stack(file, folder, "logs"))
        raise
    finally:
        stack(file, folder, "down")
        shutil.rmtree(folder, ignore_errors=True)


def train(settings: dict[str, str], bucket: Bucket) -> Ledger:
    """Two segments from Airflow's own REST door, with a rank killed; the configuration lies where the stack has its files."""
    folder = Path(settings["PRUNELLA_FOLDER"])
    (folder / "experiment.toml").write_text(OPTIONS)
    where = live.LiveSettings(
        folder=folder / "airflow", root=bucket.root, airflow_port=int(settings["PRUNELLA_AIRFLOW_PORT"]), mlflow_port=None
    )
    api = AirflowApi(where.airflow_url, live.USER, live.password(where))
    conf = {
        "experiment": "own",
        "config_file": str(folder / "experiment.toml"),
        "schedule": "continuous",
        "faults": ["kill:rank=1,step=5"],
    }
    api.trigger(DAG_ID, conf=conf, run_id="first")
    ledger = open_ledger(bucket.root, "own")
    live_until(api, "first", ledger)
    wait_until_complete(ledger, 600.0)
    return ledger


def live_until(api: AirflowApi, run_id: str, ledger: Ledger) -> None:
    """Until the experiment is opened, which Airflow may refuse to."""
    while not ledger.store.exists(ledger.experiment_key):
        assert api.run_states(DAG_ID)[run_id] in ("queued", "running"), api.task_states(DAG_ID, run_id)
        time.sleep(1.0)


def ends_of_runs(server: Postgres) -> list[str]:
    """States of the DAG runs of segments, once none runs any more: the last one publishes after the experiment is complete."""

    def ended() -> list[str]:
        states = [state for (state,) in server.ask("airflow", RUNS)]
        return [] if "running" in states else states

    return wait_until(ended, "no DAG run of a segment runs any more", timeout_s=PATIENCE_S, every_s=1.0)


def pages_of_mlflow(settings: dict[str, str]) -> str:
    address = f"{settings['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/get-by-name"
    return httpx.get(address, params={"experiment_name": "prunella"}, trust_env=False).raise_for_status().text
