"""The stack's one file: it alone decides, also on the engine; an edit of it or another build reaches every service, and what
it names no more is ended. Only its owner may read it, and only this machine may reach the services."""

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import pytest
import yaml
from dotenv import dotenv_values
from podman_compose import rec_subs

from buckets import BUCKET, moto_bucket, set_in_environment
from engine_double import DOCKER, PODMAN, ROOTLESS, EngineDouble, engine_double

CONTAINERS = Path(__file__).resolve().parents[2] / "containers"
FILE = """\
COMPOSE_PROFILES=mlflow
PRUNELLA_ROOT=s3://ours/runs
PRUNELLA_VERSION=1.0
AWS_REGION=eu-central-1
PRUNELLA_DATABASE='postgresql+psycopg2://ours:it has spaces@127.0.0.1:5432/airflow'
"""
#: Docker's client with its compose, or podman's: every image's id lies in the file `images` beside it, and it notes what it is
#: told, and for which engine.
CLIENT = """\
#!/bin/sh
echo "$DOCKER_HOST$DOCKER_CONTEXT" >> "$(dirname "$0")/engines"
[ "$1 $2" = "image inspect" ] && { cat "$(dirname "$0")/images"; exit; }
[ "$1" = ps ] || echo "$*" >> "$(dirname "$0")/told"
"""
#: An engine that has one container of the service that is asked for, and images whose ids lie in files of their names beside
#: it, and notes what else it is told.
ENGINE = """\
#!/bin/sh
[ "$1 $2" = "image inspect" ] && { cat "$(dirname "$0")/$(basename "$4")"; exit; }
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
EVERY = {"postgres", "s3", "prepare", "mlflow", "airflow"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prunella.env"
    path.write_text(FILE)
    return path


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """What `docker` or `podman` is to the stack."""
    path = tmp_path / "engine"
    path.write_text(ENGINE)
    path.chmod(0o755)
    return path


def services(environment: Mapping[str, str]) -> dict[str, Any]:
    """What podman-compose makes of compose.yaml in an environment."""
    found: dict[str, Any] = rec_subs(yaml.safe_load((CONTAINERS / "compose.yaml").read_text()), dict(environment))["services"]
    return found


def complete(environment: Mapping[str, str]) -> dict[str, str]:
    """With what compose.yaml insists on."""
    return {**environment, "PRUNELLA_USER": "10001:10001"}


def marked(file: Path, engine: Path) -> dict[str, Any]:
    """The services that `make stack` asks for."""
    environment = stack.environment_of(file)
    mark = stack.mark(file, stack.image_ids(str(engine), environment))
    return services(complete({**environment, stack.SETTINGS_VARIABLE: mark}))


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
    monkeypatch.setenv("DOCKER_CONFIG", "/somewhere")

    assert stack.environment_of(file)["DOCKER_CONFIG"] == "/somewhere"


def test_a_value_of_the_file_is_read_to_the_letter(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of-the-shell")
    file.write_text(FILE + "AWS_SECRET_ACCESS_KEY='pa$$word ${HOME} #1'\n")

    assert stack.environment_of(file)["AWS_SECRET_ACCESS_KEY"] == "pa$$word ${HOME} #1"


# ------------------------------------------------------------------------------------------------ an edit arrives


def test_an_edited_file_makes_every_service_another_and_an_equal_one_none(file: Path, engine: Path) -> None:
    before = marked(file, engine)
    again = marked(file, engine)
    file.write_text(FILE.replace("it has spaces", "it was changed"))
    after = marked(file, engine)

    assert again == before
    assert {name for name in after if after[name] != before[name]} == EVERY


@pytest.mark.parametrize("image", stack.IMAGES)
def test_an_image_that_was_built_again_makes_every_service_another(image: str, file: Path, engine: Path) -> None:
    (engine.parent / f"{image}:1.0").write_text("sha256:one")
    before = marked(file, engine)
    (engine.parent / f"{image}:1.0").write_text("sha256:another")
    after = marked(file, engine)

    assert {name for name in after if after[name] != before[name]} == EVERY


def test_the_images_that_are_looked_at_are_those_of_ours_that_services_run(file: Path) -> None:
    named = {service["image"] for service in services(complete(stack.environment_of(file))).values()}

    assert {name for name in named if name.startswith("prunella/")} == {f"prunella/{image}:1.0" for image in stack.IMAGES}


def test_services_that_the_file_names_no_more_are_ended_and_no_others(file: Path, engine: Path) -> None:
    stack.end_unnamed(str(engine), stack.environment_of(file))

    assert (engine.parent / "told").read_text().splitlines() == ["stop postgres", "rm postgres", "stop s3", "rm s3"]


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


# ------------------------------------------------------------------------------------------------ who may read and reach it


@pytest.fixture
def socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the engine listens, which the shell names; with a standard library of one file."""
    (tmp_path / "stdlib").mkdir()
    (tmp_path / "stdlib" / "this.py").touch()
    monkeypatch.setenv("PRUNELLA_STDLIB", str(tmp_path / "stdlib"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'engine.sock'}")
    return tmp_path / "engine.sock"


@pytest.fixture
def docker(socket: Path) -> Iterator[EngineDouble]:
    """An engine that runs as root."""
    with engine_double(socket, {"GET /version": DOCKER}) as double:
        yield double


def written(folder: Path) -> dict[str, str | None]:
    """The settings of a new stack that keeps its files in a folder."""
    stack.write_settings(folder.with_suffix(".env"), folder)
    return dotenv_values(folder.with_suffix(".env"))


@pytest.mark.usefixtures("docker")
def test_each_stack_has_passwords_of_its_own_that_only_its_owner_may_read(tmp_path: Path) -> None:
    one, other = written(tmp_path / "one"), written(tmp_path / "other")

    for name in ("AWS_SECRET_ACCESS_KEY", "POSTGRES_PASSWORD"):
        assert len(one[name] or "") == len(other[name] or "") == 32
        assert one[name] != other[name]
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("one.env", "other.env")} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "one").iterdir() if path.name != "corpus"} == {0o700}


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("postgres", ["-c", "listen_addresses=127.0.0.1", "-c", "port=5432"]),
        ("s3", ["--port", "127.0.0.1:7070", "--region", "eu-central-1", "posix", "/srv/s3"]),
        ("mlflow", ["python", "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "5000", "--workers", "1"]),
        ("airflow", ["python", "-m", "prunella", "up", "--dir", "/srv/airflow"]),
    ],
)
def test_a_service_of_the_stack_listens_on_this_machine_only(name: str, command: list[str], file: Path) -> None:
    """That `prunella up` does so is a promise of its own."""
    found = services(complete({**stack.environment_of(file), "PRUNELLA_FOLDER": "/srv"}))[name]

    assert found["command"] == command
    assert found["network_mode"] == "host"
    assert "ports" not in found


def test_the_postgresql_of_the_stack_asks_everybody_for_the_password(file: Path) -> None:
    """initdb alone says whom a new database trusts; by default that is everybody on this machine."""
    environment = services(complete(stack.environment_of(file)))["postgres"]["environment"]

    assert environment["POSTGRES_INITDB_ARGS"] == "--auth=scram-sha-256"
    assert "POSTGRES_HOST_AUTH_METHOD" not in environment


# ------------------------------------------------------------------------------------------------ one engine for all


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The programs docker and podman of this machine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "images").write_text("sha256:one\n")
    for name in ("docker", "podman"):
        (folder / name).write_text(CLIENT)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_CONTEXT", "of-the-shell")
    return folder


def ask(file: Path, *words: str) -> None:
    """`make stack ARGS="..."`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["stack.py", "--env", str(file), *words])
        stack.main()


@pytest.fixture
def own(docker: EngineDouble, client: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stack's file as it is written, after which the shell names another engine."""
    written(tmp_path / "stack")
    monkeypatch.setenv("DOCKER_HOST", "unix:///of-the-shell.sock")
    return tmp_path / "stack.env"


def edit(file: Path, name: str, value: object) -> None:
    lines = [f"{name}={value}" if line.startswith(f"{name}=") else line for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines))


@pytest.mark.parametrize("words", [("up", "--no-start"), ("logs", "airflow")])
def test_every_word_is_for_the_engine_that_the_file_names_whichever_the_shell_does(
    words: tuple[str, ...], own: Path, docker: EngineDouble, client: Path
) -> None:
    ask(own, *words)

    assert set((client / "engines").read_text().split()) == {docker.address}
    assert (client / "told").read_text().splitlines()[-1].endswith(" ".join(words))


def test_podman_is_told_the_engine_by_the_variable_that_it_reads(own: Path, docker: EngineDouble) -> None:
    assert stack.environment_of(own)["CONTAINER_HOST"] == docker.address


@pytest.mark.parametrize(
    ("version", "expected"),
    [(DOCKER, ("docker", ["docker", "compose"])), (PODMAN, ("podman", [sys.executable, "-m", "podman_compose"]))],
)
def test_the_engine_says_whose_compose_starts_the_services_where_both_are_there(
    version: dict[str, Any], expected: tuple[str, list[str]], own: Path, docker: EngineDouble
) -> None:
    docker.plan["GET /version"] = version

    assert stack._compose(own, stack.environment_of(own)) == expected


def test_docker_without_its_compose_is_one_clear_error(own: Path, client: Path) -> None:
    (client / "docker").write_text("#!/bin/sh\nexit 1\n")

    with pytest.raises(SystemExit, match=r"expected that `docker compose version` answers .*; install"):
        ask(own, "up")


def test_without_a_name_in_the_shell_the_engine_is_that_of_the_current_docker_context(
    docker: EngineDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = hashlib.sha256(b"mine").hexdigest()
    about = {"Name": "mine", "Metadata": {}, "Endpoints": {"docker": {"Host": docker.address, "SkipTLSVerify": False}}}
    (tmp_path / "contexts" / "meta" / mark).mkdir(parents=True)
    (tmp_path / "contexts" / "meta" / mark / "meta.json").write_text(json.dumps(about))
    (tmp_path / "config.json").write_text(json.dumps({"currentContext": "mine"}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)

    assert written(tmp_path / "stack")["PRUNELLA_ENGINE_SOCKET"] == str(docker.path)


# ------------------------------------------------------------------------------------------------ what must be there


@pytest.mark.parametrize("name", ["PRUNELLA_DATA_FOLDER", "PRUNELLA_FOLDER", "PRUNELLA_ENGINE_SOCKET"])
def test_a_path_of_the_file_that_is_not_there_is_one_clear_error_before_anything_is_started(
    name: str, own: Path, client: Path, tmp_path: Path
) -> None:
    edit(own, name, tmp_path / "mistyped")

    with pytest.raises(SystemExit, match=f"{name} in {own}: expected .*, found none at .*mistyped"):
        ask(own, "up")

    assert not (tmp_path / "mistyped").exists()
    assert not (client / "told").exists() or (client / "told").read_text() == "compose version\n"


@pytest.mark.parametrize(("prefix", "cure"), [("", "run: make images"), ("registry.example/", "pull registry.example/")])
def test_an_image_of_ours_that_is_not_there_is_built_or_pulled_by_a_person(
    prefix: str, cure: str, own: Path, client: Path
) -> None:
    (client / "images").write_text("")
    edit(own, "PRUNELLA_IMAGE_PREFIX", prefix)

    with pytest.raises(SystemExit, match=f"expected {prefix}prunella/airflow:.* in the engine at .*, found none; {cure}"):
        ask(own, "up")

    assert (client / "told").read_text() == "compose version\n"


def test_no_image_of_ours_is_ever_fetched_by_its_name(file: Path) -> None:
    """Without a registry's name before it, that would be somebody else's."""
    found = services(complete(stack.environment_of(file))).values()

    assert {service.get("pull_policy") for service in found if service["image"].startswith("prunella/")} == {"never"}
    assert {service.get("pull_policy") for service in found if not service["image"].startswith("prunella/")} == {None}


def test_airflow_knows_a_user_name_though_whoever_runs_it_is_in_no_list_of_users(file: Path) -> None:
    environment = services(complete(stack.environment_of(file)))["airflow"]["environment"]

    assert {name: environment[name] for name in ("USER", "LOGNAME")} == {"USER": "prunella", "LOGNAME": "prunella"}


def test_selinux_keeps_no_service_out_of_its_folders(file: Path) -> None:
    options = [service["security_opt"] for service in services(complete(stack.environment_of(file))).values()]

    assert options == [["no-new-privileges:true", "label=disable"]] * len(EVERY)


@pytest.mark.usefixtures("docker")
def test_services_are_given_no_more_processes_than_their_user_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Podman without root is refused a limit above that, which is small on a machine with little memory."""
    monkeypatch.setattr("resource.getrlimit", lambda _which: (1024, 31_000))

    settings = written(tmp_path / "stack")
    found = services({name: value for name, value in settings.items() if value is not None})

    assert {tuple(service["ulimits"]["nproc"].values()) for service in found.values()} == {("31000", "31000")}


# ------------------------------------------------------------------------------------------------ an engine without root


def test_under_podman_without_root_services_keep_the_user_who_owns_their_files(socket: Path, tmp_path: Path) -> None:
    with engine_double(socket, {"GET /info": ROOTLESS}):
        settings = written(tmp_path / "stack")

    found = services({name: value for name, value in settings.items() if value is not None})
    owner = (tmp_path / "stack" / "postgres").stat()
    assert {service["userns_mode"] for service in found.values()} == {"keep-id"}
    assert {service["user"] for service in found.values()} == {f"{owner.st_uid}:{owner.st_gid}"}


@pytest.mark.usefixtures("docker")
def test_under_an_engine_of_root_services_have_the_users_of_this_machine(tmp_path: Path) -> None:
    assert written(tmp_path / "stack")["PRUNELLA_USERNS"] == "host"


def test_a_file_that_says_nothing_of_it_means_the_users_of_this_machine(file: Path) -> None:
    assert {service["userns_mode"] for service in services(complete(stack.environment_of(file))).values()} == {"host"}


def test_docker_without_root_is_refused_before_anything_is_written(socket: Path, tmp_path: Path) -> None:
    plan = {"GET /version": DOCKER, "GET /info": ROOTLESS}

    with engine_double(socket, plan), pytest.raises(SystemExit, match="found Docker without root"):
        written(tmp_path / "stack")

    assert not (tmp_path / "stack").exists()
    assert not (tmp_path / "stack.env").exists()


def test_an_engine_that_does_not_answer_is_one_clear_error(socket: Path, tmp_path: Path) -> None:
    with engine_double(socket, {}) as double:
        double.plan.clear()
        with pytest.raises(SystemExit, match="expected a container engine that answers"):
            written(tmp_path / "stack")


@pytest.mark.skipif(os.getuid() == 0, reason="root may look into every folder")
def test_a_socket_in_a_folder_that_only_root_may_look_into_is_none(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)

    assert not stack._is_socket(closed / "engine.sock")
