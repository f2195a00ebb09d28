"""Stages as real containers of a real engine: started once, found again, closed in, and over when they are dead.

The stage is data prep, held up by the fault `storage-down` for as long as a test needs it alive, as in `unit/launch`.
"""

import contextlib
import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker.errors import NotFound

from engine import engine_with
from prunella.errors import Cause, ConfigError, PrunellaError
from prunella.launch import container, door
from prunella.launch.container import Container
from prunella.launch.door import Launch
from prunella.launch.handle import Handle
from prunella.launch.images import WORKER
from prunella.records import FailedRecord
from unit.launch.test_door import held_launch_under, launch_under, record_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
_HELD_S = 120.0


@pytest.fixture(scope="module", autouse=True)
def engine() -> Iterator[None]:
    with engine_with(WORKER):
        yield


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """A data prep that fails at once, ready to be started."""
    launch = launch_under(tmp_path, faults=())
    yield launch
    remove(launch)


@pytest.fixture
def held_launch(tmp_path: Path) -> Iterator[Launch]:
    """The same, but its container waits for its store for a while."""
    launch = held_launch_under(tmp_path, seconds=_HELD_S)
    yield launch
    remove(launch)


def remove(launch: Launch) -> None:
    with contextlib.suppress(NotFound):
        container._engine().api.remove_container(container._name(launch), force=True)


def start(launch: Launch) -> Handle:
    handle = door.start_or_attach(launch)
    assert handle is not None, launch.log.read_text()
    return handle


def wait(handle: Handle, launch: Launch) -> list[str]:
    lines: list[str] = []
    door.wait(handle, log=launch.log, on_line=lines.append)
    return lines


def test_a_stage_in_a_container_leaves_its_record_passes_on_its_log_and_no_container(launch: Launch) -> None:
    handle = start(launch)
    lines = wait(handle, launch)

    record = record_of(launch)
    assert isinstance(handle, Container)
    assert isinstance(record, FailedRecord)
    assert record.failure is not None
    assert record.failure.cause is Cause.CONFIG_ERROR
    assert "stage_recorded" in lines[-1]
    assert "node=node-0" in lines[-1]
    assert container._state(handle.name) is None


def test_files_of_a_container_belong_to_whoever_launched_it(launch: Launch) -> None:
    wait(start(launch), launch)

    assert {path.stat().st_uid for path in launch.handle.parent.rglob("*")} == {os.getuid()}


def test_a_second_launch_attaches_to_the_running_container(held_launch: Launch) -> None:
    first = start(held_launch)

    second = start(held_launch)

    assert second == first
    assert second.is_alive


def test_a_container_that_was_made_and_never_started_is_started_by_the_next_launch(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the launcher dies between the two calls."""
    monkeypatch.setattr("docker.models.containers.Container.start", interrupt)
    with pytest.raises(KeyboardInterrupt):
        door.start_or_attach(launch)
    monkeypatch.undo()

    wait(start(launch), launch)

    assert isinstance(record_of(launch), FailedRecord)


def interrupt(_container: object) -> None:
    raise KeyboardInterrupt


def test_a_killed_container_is_over_without_a_record_and_is_not_started_again(held_launch: Launch) -> None:
    handle = start(held_launch)

    handle.send(signal.SIGKILL)
    wait(handle, held_launch)
    again = start(held_launch)

    assert again == handle
    assert not again.is_alive
    assert record_of(held_launch) is None


def test_a_container_ends_on_sigterm_within_its_grace(held_launch: Launch) -> None:
    handle = start(held_launch)

    door.stop(handle, grace_s=20.0)

    assert not handle.is_alive
    assert record_of(held_launch) is None


def test_a_container_has_no_capability_a_read_only_root_and_nothing_of_the_environment_that_it_does_not_read(
    held_launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SOME_PASSWORD", "PRUNELLA_AIRFLOW_PASSWORD", "PRUNELLA_DATABASE", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "hunter2")
    handle = start(held_launch)
    assert isinstance(handle, Container)

    found = container._engine().api.inspect_container(handle.name)

    assert "hunter2" not in str(found)
    assert found["HostConfig"]["ReadonlyRootfs"]
    assert not found["HostConfig"]["Privileged"]
    assert not found.get("EffectiveCaps")
    assert "no-new-privileges" in str(found["HostConfig"]["SecurityOpt"])


def test_a_container_sees_the_credentials_of_the_home_folder_and_cannot_change_them(
    held_launch: Launch, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    credentials = tmp_path_factory.mktemp("home") / ".aws" / "credentials"
    credentials.parent.mkdir()
    credentials.write_text("[default]\n")
    for name in container._CREDENTIAL_FILES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(credentials.parents[1]))
    handle = start(held_launch)
    assert isinstance(handle, Container)

    found = container._engine().api.inspect_container(handle.name)

    assert [mount["RW"] for mount in found["Mounts"] if mount["Destination"] == str(credentials)] == [False]
    assert f"AWS_SHARED_CREDENTIALS_FILE={credentials}" in found["Config"]["Env"]


def test_a_container_that_dies_before_it_registers_is_removed_and_its_last_words_are_in_the_log(launch: Launch) -> None:
    mistaken = Mistaken(**{field.name: getattr(launch, field.name) for field in dataclasses.fields(launch)})

    handle = door.start_or_attach(mistaken)

    assert handle is None
    assert "no-such-command" in launch.log.read_text()
    assert container._state(container._name(launch)) is None


class Mistaken(Launch):
    """A launch whose command no process understands."""

    @property
    def command(self) -> list[str]:
        return ["no-such-command"]


def test_a_container_that_does_not_register_in_time_is_ended_and_removed(
    held_launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "_REGISTER_TIMEOUT_S", 0.0)

    handle = door.start_or_attach(held_launch)

    assert handle is None
    assert container._state(container._name(held_launch)) is None


def test_a_command_ends_and_leaves_no_container_but_those_that_others_have_just_made(tmp_path: Path) -> None:
    other = f"prunella-other-{os.getpid()}"
    folders = container._mounts([tmp_path], ())
    container._create(other, WORKER, ["fault", "list"], log=tmp_path / "log", folders=folders, environment={}, label="command")

    code = door.start_command(["fault", "list"], log=tmp_path / "log", writes=[]).wait(60.0)

    left = container._state(other)
    container._engine().api.remove_container(other, force=True)
    assert code == 0
    assert "kill" in (tmp_path / "log").read_text()
    assert left is not None
    assert left["Status"] == "created"


def test_a_container_that_cannot_be_started_is_one_clear_error(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is asked for more open files than this machine allows."""
    monkeypatch.setattr("resource.getrlimit", lambda _which: (2**30, 2**30))

    with pytest.raises(PrunellaError, match="could not be started"):
        door.start_or_attach(launch)


def test_an_image_that_is_not_there_is_named_with_what_builds_it(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELLA_IMAGE_PREFIX", "localhost/nowhere/")

    with pytest.raises(ConfigError, match=r"localhost/nowhere/prunella/worker:\S+ is not known.*make images"):
        door.start_or_attach(launch)


def test_an_engine_that_is_away_is_one_clear_error(launch: Launch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'nobody.sock'}")
    container._engine.cache_clear()

    with pytest.raises(PrunellaError, match=r"does not answer.*DOCKER_HOST"):
        door.start_or_attach(launch)

    monkeypatch.undo()
    container._engine.cache_clear()
