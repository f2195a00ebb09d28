"""Runs in MLflow say which Airflow task made them, whoever makes them, and however far from the task."""

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest

from prunella.tracking.airflow_context import STAMPS, AirflowRunContext, stamp
from prunella.tracking.mirror import mirror
from unit.tracking.campaign import open_campaign, play, play_segment_0, play_segment_1

mlflow = pytest.importorskip("mlflow", reason="needs the component extra (mlflow)")

PYPROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"
GROUP = "mlflow.run_context_provider"
CLOSE = {
    "airflow.dag_id": "pretrain_segment",
    "airflow.dag_run_id": "whole__seg-0000__r0",
    "airflow.task_id": "close_segment",
    "airflow.try_number": "1",
}


@pytest.fixture(autouse=True)
def no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in STAMPS.values():
        monkeypatch.delenv(variable, raising=False)


def be_in(task: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that Airflow gives to a task."""
    for tag, value in task.items():
        monkeypatch.setenv(STAMPS[tag], value)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    yield f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    mlflow.set_tracking_uri(before[0])
    mlflow.set_registry_uri(before[1])


def declared() -> dict[str, str]:
    plugins: dict[str, str] = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"][GROUP]
    return plugins


def stamps_of(uri: str, run_id: str) -> dict[str, str]:
    tags = mlflow.MlflowClient(uri).get_run(run_id).data.tags
    return {key: value for key, value in tags.items() if key.startswith("airflow.")}


def test_what_airflow_tells_its_tasks_is_what_the_stamp_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk.execution_time.context import context_to_airflow_vars

    instance = SimpleNamespace(dag_id="pretrain_segment", task_id="close_segment", try_number=2)
    told = context_to_airflow_vars(
        {"task_instance": instance, "dag_run": SimpleNamespace(run_id="moe__seg-0003__r0")}, in_env_var_format=True
    )
    for variable, value in told.items():
        monkeypatch.setenv(variable, value)

    found = stamp()

    assert found == {
        "airflow.dag_id": "pretrain_segment",
        "airflow.dag_run_id": "moe__seg-0003__r0",
        "airflow.task_id": "close_segment",
        "airflow.try_number": "2",
    }


def test_outside_of_airflow_there_is_no_stamp() -> None:
    assert (AirflowRunContext().in_context(), stamp()) == (False, {})


def test_the_plugin_that_the_package_declares_is_the_one_that_mlflow_can_load() -> None:
    loaded = [EntryPoint(name=name, value=value, group=GROUP).load() for name, value in declared().items()]

    assert loaded == [AirflowRunContext]


def test_the_plugin_answers_all_that_mlflow_asks_a_plugin() -> None:
    from mlflow.tracking.context.abstract_context import RunContextProvider

    asked = {name for name in vars(RunContextProvider) if not name.startswith("_")}

    assert asked == {"in_context", "tags"} == {name for name in vars(AirflowRunContext) if not name.startswith("_")}


@pytest.mark.parametrize("first", ["mlflow", "prunella.tracking.airflow_context"])
def test_mlflow_finds_the_plugin_of_an_installed_package_whatever_is_imported_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    installed = tmp_path / "prunella-0.1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: prunella\nVersion: 0.1.0\n")
    lines = [f"{name} = {value}" for name, value in declared().items()]
    (installed / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]))
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import {first}
from mlflow.tracking.context.registry import resolve_tags
print(*sorted(f"{{key}}={{value}}" for key, value in resolve_tags().items() if key.startswith("airflow.")), sep="\\n")
"""
    be_in(CLOSE, monkeypatch)

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines() == [f"{tag}={value}" for tag, value in sorted(CLOSE.items())]
    assert "context provider" not in done.stderr


def test_runs_that_the_mirror_makes_carry_the_stamp_of_the_task_that_made_them_for_ever(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = open_campaign(str(tmp_path), name="stamped")
    play_segment_0(campaign)
    be_in(CLOSE, monkeypatch)
    mirror(campaign.ledger, uri=uri)
    play_segment_1(campaign)
    later = CLOSE | {"airflow.dag_run_id": "whole__seg-0001__r0", "airflow.try_number": "2"}
    be_in(later, monkeypatch)

    result = mirror(campaign.ledger, uri=uri)

    children = [stamps_of(uri, run_id) for run_id in result.attempt_run_ids]
    assert stamps_of(uri, result.run_id) == CLOSE
    assert children == [CLOSE, CLOSE, CLOSE, later]


def test_another_task_that_mirrors_again_changes_nothing(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = play(str(tmp_path), name="by-hand")
    first = mirror(campaign.ledger, uri=uri)
    be_in(CLOSE, monkeypatch)

    second = mirror(campaign.ledger, uri=uri)

    assert (second.run_id, second.points_added) == (first.run_id, 0)
    assert stamps_of(uri, second.run_id) == {}
