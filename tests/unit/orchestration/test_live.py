"""A live Airflow's folder: one owner at a time, and ports that its links may count on."""

import logging
import socket
from pathlib import Path

import pytest

from prunella.errors import ConfigError
from prunella.orchestration import live


@pytest.fixture(autouse=True)
def _nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_the_pages_of_mlflow_keep_their_port(tmp_path: Path) -> None:
    first = live.settings_for(tmp_path, with_mlflow=True)
    live.services(first)

    assert live.settings_for(tmp_path, with_mlflow=True).mlflow_port == first.mlflow_port


def test_a_port_that_somebody_has_taken_is_another_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("prunella"), "propagate", True)
    first = live.settings_for(tmp_path, with_mlflow=True)
    live.services(first)

    with socket.socket() as other:
        other.bind((live.HOST, first.mlflow_port))
        other.listen()
        second = live.settings_for(tmp_path, with_mlflow=True)

    assert second.mlflow_port != first.mlflow_port
    assert f"mlflow_port_taken port={first.mlflow_port} instead={second.mlflow_port}" in caplog.text


@pytest.mark.parametrize("text", ["", "a port", "99999999"])
def test_a_kept_port_that_is_none_is_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "mlflow-port").write_text(text)

    port = live.settings_for(tmp_path, with_mlflow=True).mlflow_port

    assert port is not None
    assert 0 < port < 65536


def test_a_folder_is_occupied_by_one_and_then_free_again(tmp_path: Path) -> None:
    with live.occupied(tmp_path), pytest.raises(ConfigError, match="at work there; end it with"), live.occupied(tmp_path):
        pass

    with live.occupied(tmp_path):
        pass


def test_a_folder_that_cannot_be_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match=r"file: cannot be worked in \(File exists\)"), live.occupied(tmp_path / "file"):
        pass


def test_each_folder_has_a_password_of_its_own_that_only_its_owner_may_read(tmp_path: Path) -> None:
    one, other = (live.settings_for(tmp_path / name, with_mlflow=False) for name in ("one", "other"))

    known, others = live.environment(one), live.environment(other)

    assert live.password(one) == live.password(one) != live.password(other)
    assert len(live.password(one)) == 12
    for name in ("AIRFLOW__API__SECRET_KEY", "AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__CORE__FERNET_KEY"):
        assert known[name] != others[name]
    for name in ("secrets.json", "passwords.json"):
        assert (one.home / name).stat().st_mode & 0o777 == 0o600


def test_the_pages_of_airflow_are_told_to_listen_on_this_machine_only(tmp_path: Path) -> None:
    found = live.environment(live.settings_for(tmp_path, with_mlflow=False))

    assert found["AIRFLOW__API__HOST"] == "127.0.0.1"
