"""The demonstration: its folder is made anew without taking anything of a person's along, and its end waits out an Airflow."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunella.errors import ConfigError
from prunella.orchestration import demo, live
from prunella.orchestration.airflow_api import AirflowApi
from unit.orchestration.airflow_door import HANGS_UP, Stumbling, stumbling_airflow
from unit.orchestration.story import Story


@pytest.fixture
def airflow() -> Iterator[Stumbling]:
    with stumbling_airflow() as server:
        yield server


@pytest.fixture
def earlier(tmp_path: Path) -> live.LiveSettings:
    """The folder of an earlier demonstration."""
    settings = live.settings_for(tmp_path / "demo", with_mlflow=False)
    demo._make_room(settings)
    Story(root=settings.root, name=demo.EXPERIMENT).begin()
    return settings


# ------------------------------------------------------------------------------------------------ its folder


def test_an_earlier_demonstration_is_replaced(earlier: live.LiveSettings) -> None:
    demo._make_room(earlier)

    assert [path.name for path in earlier.folder.iterdir()] == [demo._MARK]


def test_experiments_that_were_started_on_its_pages_are_never_removed(earlier: live.LiveSettings) -> None:
    mine = Story(root=earlier.root, name="mine").begin()

    with pytest.raises(ConfigError, match="experiments that would be lost: mine; choose another with `prunella demo --dir`"):
        demo._make_room(earlier)

    assert mine.ledger.experiment().name == "mine"


def test_a_folder_in_which_somebody_works_is_left_alone(earlier: live.LiveSettings) -> None:
    with live.occupied(earlier.folder), pytest.raises(ConfigError, match="at work there"):
        demo._make_room(earlier)

    assert Path(earlier.root).is_dir()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("the only copy")

    with pytest.raises(ConfigError, match="not empty, and not of an earlier demonstration"):
        demo._make_room(live.settings_for(tmp_path, with_mlflow=False))

    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_folder_that_cannot_be_is_one_clear_error(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match=rf"{where}: cannot be made anew \(Not a directory\); choose another folder"):
        demo._make_room(live.settings_for(tmp_path / where, with_mlflow=False))


# ------------------------------------------------------------------------------------------------ its end


def test_an_airflow_that_stumbles_after_the_last_close_is_asked_again(
    airflow: Stumbling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_POLL_S", 0.01)
    airflow.statuses = [500, HANGS_UP, 200]

    demo._wait_for_runs(AirflowApi(airflow.address, "admin", "secret"), time.monotonic() + 60.0, lambda _: None)

    assert airflow.asked == 3


def test_an_airflow_that_never_rises_is_waited_for_until_the_deadline(airflow: Stumbling) -> None:
    airflow.statuses = [500]

    demo._wait_for_runs(AirflowApi(airflow.address, "admin", "secret"), time.monotonic(), lambda _: None)

    assert airflow.asked == 1
