"""The stack's one file: it alone decides, an edit of it reaches every service, and what it names no more is ended."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import pytest
import yaml
from podman_compose import rec_subs

from buckets import BUCKET, moto_bucket, set_in_environment

CONTAINERS = Path(__file__).resolve().parents[2] / "containers"
FILE = """\
COMPOSE_PROFILES=mlflow
PRUNELLA_ROOT=s3://ours/runs
AWS_REGION=eu-central-1
PRUNELLA_DATABASE='postgresql+psycopg2://ours:it has spaces@127.0.0.1:5432/airflow'
"""
#: An engine that has one container of the service that is asked for, and notes what else it is told.
ENGINE = """\
#!/bin/sh
[ "$1" = ps ] && { echo "$*" | sed 's/.*compose.service=//'; exit; }
echo "$*" >> "$(dirname "$0")/told"
"""


def program(name: str) -> ModuleType:
    """A script of `containers/`, which is no package."""
    spec = importlib.util.spec_from_file_location(f"containers_{name}", CONTAINERS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stack = program("stack")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prunella.env"
    path.write_text(FILE)
    return path


def services(environment: Mapping[str, str]) -> dict[str, Any]:
    """What podman-compose makes of compose.yaml in an environment."""
    found: dict[str, Any] = rec_subs(yaml.safe_load((CONTAINERS / "compose.yaml").read_text()), dict(environment))["services"]
    return found


def complete(environment: Mapping[str, str]) -> dict[str, str]:
    """With what compose.yaml insists on."""
    return {**environment, "PRUNELLA_USER": "10001:10001"}


# ------------------------------------------------------------------------------------------------ who decides


def test_the_file_decides_over_the_shell(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELLA_ROOT", "s3://of-the-shell/runs")
    monkeypatch.setenv("COMPOSE_PROFILES", "postgres,s3,mlflow")

    found = stack.environment_of(file)

    assert found["PRUNELLA_ROOT"] == "s3://ours/runs"
    assert found["COMPOSE_PROFILES"] == "mlflow"
    assert found["PRUNELLA_DATABASE"] == "postgresql+psycopg2://ours:it has spaces@127.0.0.1:5432/airflow"


@pytest.mark.parametrize("name", ["COMPOSE_PROFILES", "COMPOSE_PROJECT_NAME", "AWS_ACCESS_KEY_ID", "AWS_DEFAULT_REGION"])
def test_what_the_file_does_not_say_is_not_taken_from_the_shell(name: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(FILE.replace("COMPOSE_PROFILES=mlflow\n", ""))
    monkeypatch.setenv(name, "of-the-shell")

    assert name not in stack.environment_of(file)


def test_what_is_no_setting_of_the_stack_reaches_compose_as_it_is(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///somewhere.sock")

    assert stack.environment_of(file)["DOCKER_HOST"] == "unix:///somewhere.sock"


# ------------------------------------------------------------------------------------------------ an edit arrives


def test_an_edited_file_makes_every_service_another_and_an_equal_one_none(file: Path) -> None:
    before = services(complete(stack.environment_of(file)))
    again = services(complete(stack.environment_of(file)))
    file.write_text(FILE.replace("it has spaces", "it was changed"))
    after = services(complete(stack.environment_of(file)))

    assert again == before
    assert {"postgres", "s3", "prepare", "mlflow", "airflow"} == {name for name in after if after[name] != before[name]}


def test_services_that_the_file_names_no_more_are_ended_and_no_others(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tmp_path / "engine"
    engine.write_text(ENGINE)
    engine.chmod(0o755)

    stack.end_unnamed(str(engine), stack.environment_of(file))

    assert (tmp_path / "told").read_text().splitlines() == ["stop postgres", "rm postgres", "stop s3", "rm s3"]


# ------------------------------------------------------------------------------------------------ one region for all


@pytest.mark.parametrize("name", ["prepare", "mlflow"])
def test_programs_that_read_no_aws_region_are_told_it_by_the_name_they_read(name: str, file: Path) -> None:
    found = services(complete(stack.environment_of(file)))[name]["environment"]

    assert found["AWS_DEFAULT_REGION"] == "eu-central-1"


@pytest.mark.parametrize(("written", "expected"), [("", "us-east-1"), ("AWS_DEFAULT_REGION=eu-west-1\n", "eu-west-1")])
def test_without_that_line_the_region_is_the_one_the_s3_server_has_too(written: str, expected: str, file: Path) -> None:
    file.write_text(FILE.replace("AWS_REGION=eu-central-1\n", written))

    assert services(complete(stack.environment_of(file)))["prepare"]["environment"]["AWS_DEFAULT_REGION"] == expected


@pytest.mark.parametrize(("region", "place"), [("us-east-1", None), ("eu-central-1", "eu-central-1")])
def test_the_bucket_of_the_stack_is_made_in_its_region(region: str, place: str | None) -> None:
    with moto_bucket() as bucket, set_in_environment({**bucket.environment, "AWS_DEFAULT_REGION": region}):
        program("prepare")._make_bucket(f"s3://new-in-{region}/runs")

        assert boto3.client("s3").get_bucket_location(Bucket=f"new-in-{region}")["LocationConstraint"] == place
        program("prepare")._make_bucket(f"s3://{BUCKET}/runs")  # what is there stays as it is
