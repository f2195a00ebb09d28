"""summary.json: exactly the promised fields, counted from records."""

import json
from pathlib import Path

import pytest

from prunella.records import Directive, Outcome, Part
from prunella.tracking.history import read_history
from prunella.tracking.summary import document, state, summary
from unit.tracking.campaign import FAULTS, open_campaign, play, play_crash, play_segment_0

FIELDS = (
    "state segments attempts restarts steps tokens first_loss_nats final_loss_nats incidents checkpoints accuracy time_s ettr "
    "faults_fired mlflow_run_id airflow_dag_runs"
)


def test_the_document_has_exactly_the_promised_fields(tmp_path: Path) -> None:
    campaign = play(str(tmp_path))

    found = document(summary(read_history(campaign.ledger), mlflow_run_id="abc", now_ns=0))

    assert sorted(found) == sorted(FIELDS.split())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert sorted(found["incidents"][0]) == ["cause", "culprit", "decision", "lost_steps", "recovery_s"]
    assert sorted(found["checkpoints"]) == ["rejected", "verified"]
    assert sorted(found["accuracy"]["heldout_choice"]) == ["acc", "chance", "ci95", "n"]
    assert sorted(found["time_s"]) == sorted(["elapsed", *(part.value for part in Part)])


def test_the_campaign_is_summed_up(tmp_path: Path) -> None:
    campaign = play(str(tmp_path))

    found = summary(read_history(campaign.ledger), mlflow_run_id=None, now_ns=0)

    assert (found.state, found.segments, found.attempts, found.restarts, found.steps) == ("complete", 2, 4, 0, 40)
    assert found.tokens == 40 * 2048
    assert found.final_loss_nats == pytest.approx(8.0 / 3.0)
    assert (found.checkpoints.verified, found.checkpoints.rejected) == (4, 1)
    assert found.accuracy["heldout_choice"].acc == 0.55
    assert found.faults_fired == FAULTS
    assert found.airflow_dag_runs == ("moe__seg-0000__r0", "moe__seg-0001__r0")
    assert [incident.lost_steps for incident in found.incidents] == [3, 0, 5]
    assert sum(value for name, value in found.time_s.items() if name != "elapsed") == pytest.approx(found.time_s["elapsed"])


def test_an_experiment_that_was_only_opened_is_running_with_no_losses(tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path))

    found = summary(read_history(campaign.ledger), mlflow_run_id=None, now_ns=campaign.now_ns)

    assert (found.state, found.steps, found.first_loss_nats, found.ettr) == ("running", 0, None, 0.0)


@pytest.mark.parametrize(
    ("outcome", "is_stop_requested", "expected"),
    [
        (None, False, "running"),
        (None, True, "running"),
        (Outcome.FAILED, False, "failed"),
        (Outcome.FAILED, True, "failed"),
        (Outcome.STOPPED, False, "stopped"),
        (Outcome.STOPPED, True, "stopped"),
    ],
)
def test_state_follows_the_last_close_and_the_operator(
    tmp_path: Path, outcome: Outcome | None, is_stop_requested: bool, expected: str
) -> None:
    campaign = open_campaign(str(tmp_path))
    play_crash(campaign)
    if outcome is not None:
        campaign.close_run(0, outcome, checkpoint=None, attempt=None)
    if is_stop_requested:
        campaign.ledger.put_directive(Directive(at_ns=campaign.now_ns, reason="operator", is_stop=True))

    found = state(read_history(campaign.ledger))

    assert found == expected


def test_between_two_segments_the_experiment_is_running(tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path))
    play_segment_0(campaign)

    assert state(read_history(campaign.ledger)) == "running"
