"""What Airflow's OpenLineage provider emits of data set, segment and checkpoint."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prunella.orchestration import airflow_home
from unit.orchestration.story import Story

DAG = Path(__file__).with_name("lineage_dag.py")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """An experiment whose attempt resumed from a checkpoint, trained, and was validated."""
    story = Story(root=str(tmp_path_factory.mktemp("root") / "ledger")).begin()
    run = story.open_run(0)
    story.prepare_data(of=run)
    story.open_attempt(run, 0)
    resumed = story.candidate(10)
    attempt = story.open_attempt(run, 1, resume=resumed)
    story.gate(attempt)
    story.train(attempt)
    story.validate(attempt, story.candidate(20, attempt=1))
    return story


@pytest.fixture(scope="module")
def events(told: Story, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The event of each task's completion, by task."""
    home = tmp_path_factory.mktemp("home")
    (home / "dags").mkdir()
    shutil.copyfile(DAG, home / "dags" / DAG.name)
    airflow_home.prepare(home)
    transport = {"type": "file", "log_file_path": str(home / "events.jsonl"), "append": True}
    environment = {
        **os.environ,
        **airflow_home.environment(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
    }
    command = [sys.executable, str(home / "dags" / DAG.name), told.root]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "FOUND success" in answer.stdout, answer.stdout + answer.stderr
    found = [json.loads(line) for line in (home / "events.jsonl").read_text().splitlines()]
    return {event["job"]["name"].rpartition(".")[2]: event for event in found if event["eventType"] == "COMPLETE"}


def names(datasets: list[dict[str, Any]]) -> list[str]:
    """Where they lie under the root, and which content that is."""
    return [f"{d['name'].partition('/ledger/')[2]} {d['facets']['version']['datasetVersion'][:8]}" for d in datasets]


def version_of(told: Story, attempt: int) -> str:
    (manifest,) = told.ledger.candidates(0, attempt)
    return told.ledger.ref(manifest).manifest_sha256[:8]


def test_data_prep_is_where_the_data_set_comes_from(events: dict[str, dict[str, Any]]) -> None:
    event = events["prepare_data"]

    assert names(event["outputs"]) == [f"datasets/{'f' * 64} 00000000"]
    assert {dataset["namespace"] for dataset in event["outputs"]} == {"file"}


def test_training_turns_a_data_set_and_a_checkpoint_into_checkpoints(told: Story, events: dict[str, dict[str, Any]]) -> None:
    event = events["train_segment"]

    assert names(event["inputs"]) == [
        f"datasets/{'f' * 64} 00000000",
        f"experiments/demo/checkpoints/0000-00-0000 {version_of(told, 0)}",
    ]
    assert names(event["outputs"]) == [f"experiments/demo/checkpoints/0000-01-0000 {version_of(told, 1)}"]


def test_the_event_of_training_says_which_segment_it_was(events: dict[str, dict[str, Any]]) -> None:
    facet = events["train_segment"]["run"]["facets"]["prunella_segment"]

    assert {name: value for name, value in facet.items() if not name.startswith("_")} == {
        "experiment": "demo",
        "segment": 0,
        "run_index": 0,
        "attempt": 1,
        "first_step": 1,
        "last_step": 20,
        "verdict": "accepted",
    }


def test_validation_reads_the_checkpoint_that_it_judged(told: Story, events: dict[str, dict[str, Any]]) -> None:
    event = events["validate_checkpoint"]

    assert event["run"]["facets"]["prunella_segment"]["verdict"] == "accepted"
    assert names(event["inputs"]) == [f"experiments/demo/checkpoints/0000-01-0000 {version_of(told, 1)}"]
    assert event["outputs"] == []
