"""What a container is given of its launcher's surroundings: the ways to the store, and nothing that a stage does not read.

And what becomes of one that is lost or dies at the wrong moment, with a stand-in for the engine.
"""

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError

from engine_double import ROOTLESS, EngineDouble, engine_double
from prunella.errors import PrunellaError
from prunella.launch import container, door
from prunella.tracking import mlflow_door
from prunella.tracking.airflow_context import STAMPS
from unit.launch.test_door import launch_under


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with the AWS SDK's two files, where nothing of it is set by name."""
    for name in (*container._CREDENTIAL_FILES, *container._PROXIES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    for name in ("credentials", "config"):
        (tmp_path / ".aws" / name).write_text("[default]\n")
    return tmp_path


def read_only() -> set[str]:
    return {path for path, mount in container._mounts([], []).items() if mount == {"bind": path, "mode": "ro"}}


def test_credentials_in_the_home_folder_are_mounted_read_only_and_named(home: Path) -> None:
    files = {"AWS_SHARED_CREDENTIALS_FILE": str(home / ".aws/credentials"), "AWS_CONFIG_FILE": str(home / ".aws/config")}

    assert read_only() == set(files.values())
    assert files.items() <= container._environment().items()
    assert container._environment()["HOME"] == "/tmp"


@pytest.mark.parametrize("written", ["{home}/mine", "~/mine"])
def test_a_file_that_is_set_by_name_goes_before_that_of_the_home_folder(
    written: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "mine").write_text("[default]\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", written.format(home=home))

    assert container._environment()["AWS_SHARED_CREDENTIALS_FILE"] == str(home / "mine")
    assert read_only() == {str(home / "mine"), str(home / ".aws/config")}


def test_a_home_without_them_names_none(home: Path) -> None:
    for path in (home / ".aws").iterdir():
        path.unlink()

    assert read_only() == set()
    assert not container._CREDENTIAL_FILES.keys() & container._environment().keys()


def test_a_role_is_taken_inside_with_the_token_of_outside(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = home / "token"
    token.write_text("of a service account")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/prunella")

    assert str(token) in read_only()
    assert container._environment()["AWS_WEB_IDENTITY_TOKEN_FILE"] == str(token)
    assert container._environment()["AWS_ROLE_ARN"] == "arn:aws:iam::123456789012:role/prunella"


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "NO_PROXY", "https_proxy"])
def test_the_way_out_of_the_network_is_the_launchers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "of-the-launcher")

    assert container._environment()[name] == "of-the-launcher"


@pytest.mark.parametrize("name", ["PRUNELLA_DATABASE", "MLFLOW_TRACKING_PASSWORD", "GITHUB_TOKEN", "FTP_PROXY"])
def test_what_a_stage_does_not_read_stays_outside(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "hunter2")

    assert "hunter2" not in str(container._environment())


def test_programs_inside_know_a_user_name_though_whoever_launches_is_in_no_list_of_users_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("USER", "of-outside")

    assert {name: container._environment()[name] for name in ("USER", "LOGNAME")} == {"USER": "prunella", "LOGNAME": "prunella"}


# ------------------------------------------------------------------------------------------------ at the wrong moment

#: An engine that makes a container with this id, and has none of any name.
_MAKES_ONE = {
    "POST /containers/prune": {},
    "POST /containers/create": {"Id": "made", "Warnings": []},
    "GET /containers/made/json": {"Id": "made", "Name": "/prunella", "State": {"Status": "created"}},
}


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineDouble]:
    """An engine for stages and commands that makes containers and loses them."""
    with engine_double(tmp_path / "engine.sock", _MAKES_ONE) as double:
        monkeypatch.setenv("DOCKER_HOST", double.address)
        monkeypatch.setenv(door.VARIABLE, "container")
        forget_the_engine()
        yield double
    forget_the_engine()


def forget_the_engine() -> None:
    container._engine.cache_clear()
    container._is_rootless.cache_clear()


@pytest.fixture
def published(engine: EngineDouble, tmp_path: Path) -> Callable[[], dict[str, Any]]:
    """What the engine is asked to make for a publication."""

    def asked() -> dict[str, Any]:
        engine.plan["POST /containers/made/start"] = {}
        door.start_command(["publish"], log=tmp_path / "publish.log", writes=[])
        [document] = engine.documents("POST /containers/create")
        return document

    return asked


@pytest.fixture
def published_with(published: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, str]]:
    """What a publication's container is given of the environment."""
    return lambda: dict(entry.split("=", 1) for entry in published()["Env"])


@pytest.mark.parametrize(
    "name",
    [
        "MLFLOW_BACKEND_STORE_URI",
        "MLFLOW_AUTH_ADMIN_PASSWORD",
        "MLFLOW_FLASK_SERVER_SECRET_KEY",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
        "PRUNELLA_DATABASE",
        "PRUNELLA_AIRFLOW_PASSWORD",
    ],
)
def test_what_a_server_reads_does_not_travel_with_a_publication(
    name: str, published_with: Callable[[], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "postgresql://prunella:hunter2@127.0.0.1:5432/mlflow")

    assert "hunter2" not in str(published_with())


def test_a_publication_knows_where_mlflow_is_who_it_is_there_and_which_task_asks(
    published_with: Callable[[], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", *mlflow_door._CREDENTIALS, *STAMPS.values())
    for name in names:
        monkeypatch.setenv(name, f"of-{name}")

    assert {name: f"of-{name}" for name in names}.items() <= published_with().items()


def test_only_old_containers_of_commands_are_removed_because_a_young_one_may_be_waited_for(
    engine: EngineDouble, tmp_path: Path
) -> None:
    engine.plan["POST /containers/made/start"] = {}

    door.start_command(["publish"], log=tmp_path / "publish.log", writes=[])

    assert [query["filters"] for query in engine.queries("POST /containers/prune")] == [
        ['{"label": ["org.prunella=command"], "until": ["1h"]}']
    ]


def test_a_publication_is_made_while_another_removes_the_old_containers(
    engine: EngineDouble, published: Callable[[], dict[str, Any]]
) -> None:
    """Docker does this once at a time, and refuses the second."""
    engine.plan["POST /containers/prune"] = 409

    assert published()["Cmd"][-1] == "publish"


def test_another_refusal_to_remove_the_old_containers_is_told(
    engine: EngineDouble, published: Callable[[], dict[str, Any]]
) -> None:
    engine.plan["POST /containers/prune"] = 403

    with pytest.raises(APIError, match="403"):
        published()


def test_selinux_keeps_no_container_out_of_its_mounts(published: Callable[[], dict[str, Any]]) -> None:
    assert published()["HostConfig"]["SecurityOpt"] == ["no-new-privileges", "label=disable"]


@pytest.mark.parametrize(("info", "namespace"), [({}, "host"), (ROOTLESS, None)])
def test_a_container_has_the_users_of_the_network_that_it_is_on(
    info: dict[str, Any], namespace: str | None, engine: EngineDouble, published: Callable[[], dict[str, Any]]
) -> None:
    """Docker that maps users refuses the host's network without the host's users; without root there are none but its own."""
    engine.plan["GET /info"] = info

    assert published()["HostConfig"].get("UsernsMode") == namespace


@pytest.mark.parametrize(("allowed", "given"), [(resource.RLIM_INFINITY, 32_768), (96_365, 32_768), (31_000, 31_000)])
def test_a_container_is_asked_for_no_more_processes_than_are_allowed_here(
    allowed: int, given: int, published: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _which: (1024, allowed))

    limits = {limit["Name"]: limit for limit in published()["HostConfig"]["Ulimits"]}

    assert limits["nproc"] == {"Name": "nproc", "Soft": given, "Hard": given}


def test_a_container_that_is_gone_before_it_was_started_is_one_clear_error(engine: EngineDouble, tmp_path: Path) -> None:
    with pytest.raises(PrunellaError, match="container prunella could not be started: no such thing"):
        door.start_command(["publish"], log=tmp_path / "publish.log", writes=[])

    assert engine.queries("POST /containers/made/start")


def test_a_container_that_died_before_it_registered_is_removed_and_its_last_words_are_in_the_log(
    engine: EngineDouble, tmp_path: Path
) -> None:
    launch = launch_under(tmp_path, faults=())
    name = container._name(launch)
    dead = {"Id": "made", "Name": f"/{name}", "State": {"Status": "exited", "ExitCode": 1}, "Config": {"Tty": True}}
    engine.plan |= {
        "GET /containers/made/json": dead,
        f"GET /containers/{name}/json": dead,
        f"GET /containers/{name}/logs": b"no such file: prunella\n",
        f"DELETE /containers/{name}": {},
    }

    handle = door.start_or_attach(launch)

    assert handle is None
    assert launch.log.read_text() == "no such file: prunella\n"
    assert len(engine.queries(f"DELETE /containers/{name}")) == 1
