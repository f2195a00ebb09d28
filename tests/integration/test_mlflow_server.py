"""MLflow as a real server: PostgreSQL behind it, artifacts in a bucket, a password in front; killed amid two mirrors.

The mirrors are `prunella publish` in processes of their own, as an experiment's close starts them, by a user who is no
administrator and has no key to the bucket. What they leave is compared with what a mirror into SQLite leaves, undisturbed.
"""

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import boto3
import mlflow
import pytest

from buckets import BUCKET, Bucket, moto_bucket, set_in_environment
from mlflow_pictures import history_of, snapshot
from mlflow_servers import MlflowServer
from postgres import Postgres, postgres_server
from prunella.node_processes import free_port
from prunella.tracking.history import read_history
from prunella.tracking.mirror import MirrorResult, mirror
from unit.tracking.campaign import Campaign, open_campaign, play
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PRUNELLA = Path(sys.executable).with_name("prunella")
USER, VISITOR = "trainer", "visitor"
PATIENCE_S = 300.0
#: Counted in PostgreSQL: what a second mirror of the same ledger must not add to.
TABLES = ("experiments", "runs", "metrics", "params", "tags", "logged_models", "model_versions", "inputs")


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """The server, what it stands on, and the passwords of those who use it."""

    server: MlflowServer
    postgres: Postgres
    bucket: Bucket
    passwords: dict[str, str] = field(repr=False)

    def credentials(self, user: str) -> dict[str, str]:
        return {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": self.passwords[user]}

    def counts(self) -> dict[str, int]:
        return {table: self.postgres.ask("mlflow", f"select count(*) from {table}")[0][0] for table in TABLES}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """What mlflow/README.md describes."""
    folder = tmp_path_factory.mktemp("mlflow")
    passwords = {user: secrets.token_urlsafe(16) for user in ("admin", USER, VISITOR)}
    with postgres_server() as postgres, moto_bucket("mlflow") as bucket:
        postgres.create("mlflow", "mlflow_auth")
        server = MlflowServer(
            folder=folder,
            port=free_port(),
            arguments=("--app-name", "basic-auth"),
            environment=_environment(folder, postgres, bucket, passwords["admin"]),
        )
        try:
            server.start()
            for user in (USER, VISITOR):
                about = {"username": user, "password": passwords[user]}
                ask(server, ("admin", passwords["admin"]), "2.0/mlflow/users/create", about)
            yield Deployment(server=server, postgres=postgres, bucket=bucket, passwords=passwords)
        finally:
            server.stop()


@pytest.fixture(autouse=True, scope="module")
def mlflow_as_it_was() -> Iterator[None]:
    """A mirror in this process points all of MLflow at its store."""
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    yield
    mlflow.set_tracking_uri(before[0])
    mlflow.set_registry_uri(before[1])


def _environment(folder: Path, postgres: Postgres, bucket: Bucket, admin_password: str) -> dict[str, str]:
    settings = folder / "auth.ini"
    settings.touch(mode=0o600)
    database = postgres.uri("mlflow_auth")
    lines = ["default_permission = READ", f"database_uri = {database}", "admin_username = admin", "auth_cache_ttl_seconds = 60"]
    settings.write_text("\n".join(["[mlflow]", *lines]))
    return {
        **bucket.environment,
        "MLFLOW_BACKEND_STORE_URI": postgres.uri("mlflow"),
        "MLFLOW_ARTIFACTS_DESTINATION": bucket.root,
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": admin_password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(32),
    }


def ask(server: MlflowServer, user: tuple[str, str], path: str, question: dict[str, str]) -> None:
    """A request of the authentication's own interface, which MLflow's client does not have."""
    request = urllib.request.Request(
        f"{server.uri}/api/{path}",
        data=json.dumps(question).encode(),
        headers={"Content-Type": "application/json", "Authorization": "Basic " + b64encode(":".join(user).encode()).decode()},
    )
    urllib.request.urlopen(request, timeout=60.0).close()


def publishing(deployment: Deployment, campaign: Campaign, credentials: dict[str, str]) -> subprocess.Popen[str]:
    """`prunella publish` of a campaign, in an environment that knows the server and nothing of its bucket or database."""
    foreign = ("AIRFLOW", "AWS_", "MLFLOW_TRACKING")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    ledger = campaign.ledger
    return subprocess.Popen(
        [str(PRUNELLA), "publish", "--root", ledger.store.root, "--experiment", ledger.name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**inherited, "MLFLOW_TRACKING_URI": deployment.server.uri, **credentials},
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code and what it said."""
    said, complained = process.communicate(timeout=PATIENCE_S)
    return process.returncode, said, complained


def publish_at_once(deployment: Deployment, campaigns: list[Campaign]) -> list[tuple[int, str, str]]:
    """Both at once, again and again until both are whole: on a busy machine a pass may run out of its time, as closes may."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        started = [publishing(deployment, campaign, deployment.credentials(USER)) for campaign in campaigns]
        ends = [ended(process) for process in started]
        if all(code == 0 for code, _, _ in ends) or time.monotonic() > deadline:
            return ends


def test_two_experiments_at_once_and_a_server_killed_on_the_way_end_complete_comparable_and_without_duplicates(
    deployment: Deployment, tmp_path: Path
) -> None:
    campaigns = [play(str(tmp_path / name), name=name) for name in ("first", "second")]

    cut = publish_until_the_server_is_killed(deployment, campaigns)
    at_the_cut = deployment.counts()
    deployment.server.start()
    finished = publish_at_once(deployment, campaigns)
    whole = deployment.counts()
    repeated = publish_at_once(deployment, campaigns)
    again = deployment.counts()

    for code, _, complained in cut:
        assert (code, "Traceback" in complained) == (2, False), complained
        assert f"MLflow at {deployment.server.uri} could not be brought up to date" in complained.splitlines()[-1]
    assert 0 < at_the_cut["metrics"] < whole["metrics"]
    assert [code for code, _, _ in (*finished, *repeated)] == [0, 0, 0, 0], [complained for *_, complained in finished]
    assert again == whole
    said = "".join(text for end in (*cut, *finished, *repeated) for text in end[1:])
    assert [user for user, password in deployment.passwords.items() if password in said] == []
    assert deployment.postgres.password not in said
    with set_in_environment(deployment.credentials(USER)):
        assert_they_can_be_compared(deployment)
        for campaign, (_, answer, _) in zip(campaigns, finished, strict=True):
            assert_it_is_whole(deployment, campaign, answer.splitlines()[-1], tmp_path)


def publish_until_the_server_is_killed(deployment: Deployment, campaigns: list[Campaign]) -> list[tuple[int, str, str]]:
    """Kills it when the first checkpoint has arrived: attempts are there by then, and most of the rest is not."""
    started = [publishing(deployment, campaign, deployment.credentials(USER)) for campaign in campaigns]
    arrived = partial(deployment.postgres.ask, "mlflow", "select 1 from logged_models limit 1")
    wait_until(arrived, "a checkpoint arrived", timeout_s=PATIENCE_S)
    deployment.server.kill()
    return [ended(process) for process in started]


def assert_they_can_be_compared(deployment: Deployment) -> None:
    """In one MLflow experiment, with the same params and the same series, and nothing else there."""
    client = mlflow.MlflowClient(deployment.server.uri)
    [experiment] = client.search_experiments(filter_string="name = 'prunella'")
    runs = client.search_runs([experiment.experiment_id])
    parents = {run.info.run_name: run.data for run in runs if "mlflow.parentRunId" not in run.data.tags}
    assert sorted(parents) == ["first", "second"]
    assert len(runs) == 2 * (1 + 4), "one of each experiment, one of each attempt"
    assert parents["first"].params.keys() == parents["second"].params.keys()
    assert parents["first"].metrics.keys() == parents["second"].metrics.keys()


def assert_it_is_whole(deployment: Deployment, campaign: Campaign, run_id: str, folder: Path) -> None:
    """As a mirror shows it that nothing happened to; and its files are in the bucket."""
    uri, undisturbed = deployment.server.uri, f"sqlite:///{folder}/undisturbed.db"
    client = mlflow.MlflowClient(uri)
    found = result_of(client, run_id)
    report = Path(campaign.ledger.store.root) / "published" / campaign.ledger.name / "report.html"
    beside = mirror(campaign.ledger, uri=undisturbed, report=report)
    assert [step for step, _, _ in history_of(uri, run_id)["train/loss"]] == list(range(1, 41))
    assert snapshot(uri, found) == snapshot(undisturbed, beside)
    assert best_checkpoint(uri, campaign) == best_checkpoint(undisturbed, campaign) == "0001-00-0003"
    assert sorted(file.path for file in client.list_artifacts(run_id)) == ["incidents.json", "report.html"]
    assert f"mlflow/{found.experiment_id}/{run_id}/artifacts/report.html" in objects_in(deployment.bucket)


def best_checkpoint(uri: str, campaign: Campaign) -> str:
    name = f"{campaign.ledger.name}-{read_history(campaign.ledger).experiment_sha256[:8]}"
    version = mlflow.MlflowClient(uri, registry_uri=uri).get_model_version_by_alias(name, "best")
    return str(version.tags["prunella.checkpoint"])


def result_of(client: mlflow.MlflowClient, run_id: str) -> MirrorResult:
    """What the mirror that made these runs returned, read back."""
    experiment_id = client.get_run(run_id).info.experiment_id
    children = client.search_runs(
        [experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'", order_by=["attributes.start_time ASC"]
    )
    ids = tuple(child.info.run_id for child in children)
    return MirrorResult(run_id=run_id, experiment_id=experiment_id, attempt_run_ids=ids, points_added=0)


def objects_in(bucket: Bucket) -> set[str]:
    with set_in_environment(bucket.environment):
        listed = boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="mlflow/")
    return {entry["Key"] for entry in listed["Contents"]}


def test_a_wrong_password_is_one_clear_line_that_never_shows_it(deployment: Deployment, tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path), name="stranger")
    wrong = "hunter2-is-not-the-password"
    credentials = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": wrong}

    code, said, complained = ended(publishing(deployment, campaign, credentials))

    written = [path for path in tmp_path.rglob("*") if path.is_file() and wrong.encode() in path.read_bytes()]
    assert (code, "Traceback" in complained) == (2, False)
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in complained.splitlines()[-1]
    assert wrong not in said + complained
    assert written == []


def test_a_user_who_may_only_read_is_refused_in_one_clear_line_and_admitted_with_the_permission_it_names(
    deployment: Deployment, tmp_path: Path
) -> None:
    owner = (USER, deployment.passwords[USER])
    with set_in_environment(deployment.credentials(USER)):
        client = mlflow.MlflowClient(deployment.server.uri)
        found = client.get_experiment_by_name("prunella")
        experiment_id = client.create_experiment("prunella") if found is None else found.experiment_id
    campaign = play(str(tmp_path), name="visitor")
    edit = {"username": VISITOR, "resource_type": "experiment", "resource_id": experiment_id, "permission": "EDIT"}

    refused = ended(publishing(deployment, campaign, deployment.credentials(VISITOR)))
    ask(deployment.server, owner, "3.0/mlflow/users/permissions/grant", edit)
    admitted = ended(publishing(deployment, campaign, deployment.credentials(VISITOR)))

    assert (refused[0], "Traceback" in refused[2]) == (2, False)
    assert "ask its owner for the permission EDIT" in refused[2].splitlines()[-1]
    assert admitted[0] == 0, admitted[2]


def test_without_postgresql_these_tests_say_that_make_system_would_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("postgres.DEBIAN", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(pytest.skip.Exception, match=r"^make system: "), postgres_server():
        pass
