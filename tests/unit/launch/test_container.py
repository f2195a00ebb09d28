"""What a container is given of its launcher's surroundings: the ways to the store, and nothing that a stage does not read."""

from pathlib import Path

import pytest

from prunella.launch import container


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
