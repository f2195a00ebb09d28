"""The object store goes away while an experiment runs, and comes back: everything waits, nothing is lost."""

import time

import pytest

from e2e.campaign import IN_ONE_SEGMENT, Campaign, assert_complete, causes, wait_for
from waiting import PATIENCE_S

AWAY_S = 6.0


@pytest.mark.slow
def test_store_that_goes_away_in_training_is_waited_for_with_the_unbroken_digest(
    campaign: Campaign, unbroken: Campaign
) -> None:
    command = campaign.start(*IN_ONE_SEGMENT)
    training = campaign.root / "experiments/experiment/segments/0000/attempts/00/requests/training_segment.json"
    wait_for(training, command)

    elsewhere = campaign.root.rename(campaign.folder / "elsewhere")
    time.sleep(AWAY_S)
    was_made_anew = campaign.root.exists()
    elsewhere.rename(campaign.root)
    code = command.wait(PATIENCE_S)

    assert not was_made_anew
    assert code == 0, (campaign.folder / "run.log").read_text()[-6000:]
    summary = assert_complete(campaign.run(*IN_ONE_SEGMENT), campaign)
    assert {cause for cause, _ in causes(summary)} <= {"storage_unavailable"}
    assert campaign.digest() == unbroken.digest()


@pytest.mark.parametrize("command", ["status", "report", "publish", "stop", "checkpoint list"])
def test_store_that_is_away_is_one_clear_line_and_is_not_made(campaign: Campaign, command: str) -> None:
    done = campaign.prunella(*command.split())

    assert done.returncode == 2
    assert "no such folder; start an experiment with `prunella run" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not campaign.root.exists()
