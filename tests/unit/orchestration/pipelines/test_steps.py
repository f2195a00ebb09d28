"""What the components do, called as Kubeflow calls them, where it differs from the DAG's tasks."""

import json
from pathlib import Path

import pytest
from kfp import dsl

from prunella.errors import Cause
from prunella.fleet.lifecycle import Fleet, Owner
from prunella.launch.kubernetes.placement import exclusion
from prunella.orchestration import closing
from prunella.orchestration.pipelines import steps
from prunella.records import Action, Outcome, Stage
from unit.orchestration.story import Story


@pytest.fixture
def story(root: str) -> Story:
    made = Story(root=root).begin()
    made.prepare_data()
    return made


@pytest.fixture(autouse=True)
def _nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunella.orchestration.leaving.listen", lambda: None)


def test_training_is_kept_off_nodes_that_did_not_pass_and_off_cordoned_ones_that_were_not_asked(story: Story) -> None:
    """Attempt 0 finds node-1 bad and cordons it; attempt 1 does not even ask it."""
    run = story.open_run(is_unattended=True)
    first = story.open_attempt(run)
    story.gate(first, bad="node-1")
    story.decide(first, Action.REPLACE_NODE)
    Fleet(story.ledger.store).cordon("node-1", Owner.POLICY, "wrong products", {})
    second = story.open_attempt(run, 1)
    story.gate(second, silent="node-1")

    assert steps.gate_fabric(run, 0) == exclusion(["node-1"])
    assert steps.gate_fabric(run, 1) == exclusion(["node-1"])


def test_a_run_that_lost_its_training_pod_is_judged_and_closed_so_that_the_next_run_may_go_on(story: Story) -> None:
    run = story.open_run(is_unattended=True)
    attempt = story.open_attempt(run)
    story.gate(attempt)
    story.ask(attempt, Stage.TRAINING_SEGMENT)

    with pytest.raises(steps.SegmentFailed, match="segment 0: "):
        steps.close_segment(run, "the pod was evicted")

    decision = story.ledger.decision(0, 0)
    close = story.ledger.closed(0, 0)
    assert decision is not None
    assert close is not None
    assert [(i.diagnosis.cause, i.action) for i in decision.incidents] == [(Cause.VANISHED, Action.RETRY_SAME_NODES)]
    assert close.outcome is Outcome.FAILED
    assert closing.may_continue(story.ledger, close)


def test_a_run_that_lost_its_evaluation_pod_is_accepted_and_says_what_is_missing(story: Story) -> None:
    run = story.open_run(is_unattended=True)
    attempt = story.open_attempt(run)
    story.gate(attempt)
    ref = story.candidate(20)
    story.train(attempt)
    story.validate(attempt, ref)
    story.decide(attempt, Action.ACCEPT)

    steps.close_segment(run, "the pod was evicted")

    close = story.ledger.closed(0, 0)
    assert close is not None
    assert (close.outcome, close.is_promoted) == (Outcome.ACCEPTED, False)
    assert [(i.row, i.diagnosis.message) for i in close.incidents] == [
        ("not_evaluated", "the accepted checkpoint was not evaluated: nothing is recorded of it")
    ]


def test_an_artifact_says_where_in_the_ledger_a_thing_lies_and_keeps_the_address_kubeflow_gave_it(tmp_path: Path) -> None:
    artifact = dsl.Model(uri=str(tmp_path / "checkpoint"))
    found = steps.StepAnswer(uri="s3://bucket/runs/experiments/e/checkpoints/0000-00-0000", metadata={"step": 3})

    found.describe(artifact)

    told = {"ledger_uri": "s3://bucket/runs/experiments/e/checkpoints/0000-00-0000", "step": 3}
    assert artifact.uri == str(tmp_path / "checkpoint")
    assert artifact.metadata == told
    assert json.loads(Path(artifact.path).read_text()) == told


def test_an_artifact_of_a_step_that_was_not_reached_says_nothing(tmp_path: Path) -> None:
    artifact = dsl.Model(uri=str(tmp_path / "checkpoint"))

    steps.StepAnswer().describe(artifact)

    assert (artifact.metadata, list(tmp_path.iterdir())) == ({}, [])
