"""What goes into a step and what comes out of it, read from real records. Its events are in integration/test_lineage.py."""

import sys
from pathlib import Path

import pytest

from prunella.errors import Cause
from prunella.orchestration.airflow_operators import TrainSegment
from prunella.orchestration.lineage import Artifact, Lineage, in_openlineage, of_data_prep, of_training, of_validation, place
from prunella.records import Failure
from unit.orchestration.story import Story

DATASET = Artifact(prefix=f"datasets/{'f' * 64}", version="0" * 64)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(str(tmp_path / "root")).begin()


def test_a_failed_training_has_its_candidates_and_its_verdict(story: Story) -> None:
    run = story.open_run()
    story.prepare_data()
    attempt = story.open_attempt(run)
    story.train(attempt, 7, failure=Failure(cause=Cause.PROCESS_CRASH, message="rank 1 died"))
    candidate = story.candidate(5)

    lineage = of_training(run, 0)

    assert lineage.inputs == (DATASET,)
    assert [(found.prefix, found.version) for found in lineage.outputs] == [
        (f"experiments/demo/checkpoints/{candidate.name}", candidate.manifest_sha256)
    ]
    assert (lineage.facts["last_step"], lineage.facts["verdict"]) == (7, "rejected")


def test_a_training_that_vanished_says_that_it_left_no_record(story: Story) -> None:
    run = story.open_run()
    story.open_attempt(run)

    lineage = of_training(run, 0)

    assert lineage.facts["verdict"] == "no record"
    assert lineage.outputs == ()


def test_a_rung_that_was_not_opened_has_no_lineage(story: Story) -> None:
    run = story.open_run()

    assert of_training(run, 2) == Lineage()
    assert of_validation(run, 2) == Lineage()


def test_data_prep_that_failed_has_no_data_set(story: Story) -> None:
    assert of_data_prep(story.open_run()).outputs == ()


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("/var/ledger", ("file", "/var/ledger/datasets/f")),
        ("/var/ledger/", ("file", "/var/ledger/datasets/f")),
        ("s3://bucket/some/prefix", ("s3://bucket", "some/prefix/datasets/f")),
        ("s3://bucket", ("s3://bucket", "datasets/f")),
    ],
)
def test_places_are_named_as_openlineage_names_files_and_buckets(root: str, expected: tuple[str, str]) -> None:
    assert place(root, "datasets/f") == expected


def test_without_the_provider_there_is_no_lineage_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "airflow.providers.openlineage.extractors", None)

    assert in_openlineage("/var/ledger", Lineage(outputs=(DATASET,))) is None


def test_a_step_that_did_not_get_as_far_as_its_run_has_no_lineage() -> None:
    assert TrainSegment(task_id="train_segment", rung=0).get_openlineage_facets_on_complete(None) is None
