"""Where people look: derived from the ledger, disposable, and never in the way."""

import dataclasses
import fcntl
import json
import os
from pathlib import Path

import mlflow
import pytest

from prunella.config import TrackingConfig
from prunella.errors import TrackingUnavailable
from prunella.ledger import Ledger
from prunella.orchestration import publishing
from prunella.orchestration.publishing import (
    Published,
    publish,
    publish_apart,
    published,
    report_path,
    summary_of,
    tracking_uri,
)
from prunella.storage import FolderStore
from unit.orchestration.story import CONFIG, Story


@pytest.fixture
def story(root: str) -> Story:
    return Story(root=root).begin()


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_everything_published_lies_under_the_root_apart_from_the_ledger(story: Story) -> None:
    path = report_path(story.ledger)

    assert path == Path(story.root) / "published" / "demo" / "report.html"
    assert path.parent.is_dir()


def test_the_mirror_is_a_sqlite_store_beside_the_ledger_unless_said_otherwise(
    root: str, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_default = tracking_uri(story.ledger)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://of-the-environment")
    by_environment = tracking_uri(story.ledger)
    config = dataclasses.replace(CONFIG, tracking=TrackingConfig(uri="http://of-the-configuration"))
    by_configuration = tracking_uri(Story(root=root, name="other", config=config).begin().ledger)

    assert by_default == f"sqlite:///{root}/published/mlflow.db"
    assert by_environment == "http://of-the-environment"
    assert by_configuration == "http://of-the-configuration"


def test_nothing_is_published_before_the_first_mirror(story: Story) -> None:
    assert published(story.ledger) is None
    assert summary_of(story.ledger)["mlflow_run_id"] is None


def test_the_note_of_the_last_mirror_is_found_and_leads_to_its_page(story: Story) -> None:
    note = report_path(story.ledger).with_name("mlflow.json")
    note.write_text(json.dumps({"run_id": "abc", "experiment_id": "7"}))

    found = published(story.ledger)

    assert found == Published(run_id="abc", experiment_id="7")
    assert found.page("http://127.0.0.1:5000/") == "http://127.0.0.1:5000/#/experiments/7/runs/abc"
    assert summary_of(story.ledger)["mlflow_run_id"] == "abc"


def test_the_summary_of_a_fresh_experiment_is_a_whole_document(story: Story) -> None:
    document = summary_of(story.ledger)

    assert {"state", "segments", "attempts", "steps", "incidents", "checkpoints", "time_s", "ettr"} <= set(document)
    assert json.loads(json.dumps(document)) == document
    assert (document["attempts"], document["steps"], document["incidents"]) == (0, 0, [])


def test_a_run_that_kubeflow_opened_becomes_the_experiments(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    report_path(story.ledger)  # MLflow's SQLite store lies in the same folder
    client = mlflow.MlflowClient(tracking_uri(story.ledger))
    theirs = client.create_run(client.create_experiment("theirs", f"{story.root}/theirs"), run_name="theirs").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs)

    found = publish(story.ledger)

    assert found.run_id == theirs
    assert client.get_run(theirs).data.tags["prunella.experiment"] == "demo"


def test_publications_of_one_experiment_take_turns(story: Story) -> None:
    path = report_path(story.ledger).with_name("publish.lock")

    with publishing._turn(story.ledger), path.open("w") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    with path.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_report_is_written_even_when_mlflow_is_away(root: str) -> None:
    tracking = TrackingConfig(uri="http://127.0.0.1:9", timeout_s=1.0)
    story = Story(root=root, config=dataclasses.replace(CONFIG, tracking=tracking)).begin()

    with pytest.raises(TrackingUnavailable):
        publish(story.ledger)

    assert "<html" in report_path(story.ledger).read_text()
    assert published(story.ledger) is None


def test_a_publication_that_fails_harms_nobody_and_keeps_its_log(
    story: Story, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PRUNELLA_PYTHON", "/bin/false")

    publish_apart(story.ledger, is_awaited=True)

    assert "publishing_failed exit_code=1" in caplog.text
    assert report_path(story.ledger).with_name("publish.log").exists()


def test_between_two_segments_nobody_waits_for_the_publication(
    story: Story, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The program waits on a pipe that only opens after `publish_apart` returned: awaiting it would never end."""
    pipe, program = tmp_path / "pipe", tmp_path / "publisher"
    os.mkfifo(pipe)
    program.write_text(f"#!/bin/sh\ncat {pipe}\n")
    program.chmod(0o700)
    monkeypatch.setenv("PRUNELLA_PYTHON", str(program))

    publish_apart(story.ledger, is_awaited=False)

    pipe.write_text("go on")


def test_where_stages_are_pods_the_publication_is_waited_for_because_the_worker_may_be_one(
    story: Story, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PRUNELLA_LAUNCH", "kubernetes")
    monkeypatch.setenv("PRUNELLA_PYTHON", "/bin/false")

    publish_apart(story.ledger, is_awaited=False)

    assert "publishing_failed exit_code=1" in caplog.text


def test_a_root_that_is_away_is_not_made_by_publishing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        publishing.folder(Ledger(FolderStore(str(tmp_path / "gone")), "demo"))

    assert not (tmp_path / "gone").exists()


def test_no_place_to_publish_is_one_clear_error(story: Story) -> None:
    (Path(story.root) / "published").write_text("in the way")

    with pytest.raises(TrackingUnavailable, match=r"nothing can be published under .*make room, then run `prunella publish`"):
        publish(story.ledger)


def test_a_publication_that_cannot_be_started_is_a_warning(story: Story, caplog: pytest.LogCaptureFixture) -> None:
    (Path(story.root) / "published").write_text("in the way")

    publish_apart(story.ledger, is_awaited=True)

    assert "publishing_not_started" in caplog.text
