"""Fault: corrupt-checkpoint. Broken, healed, compared with the unbroken experiment."""

import pytest

from e2e.campaign import IN_ONE_SEGMENT, Campaign, assert_complete, causes


@pytest.mark.slow
def test_rotten_candidate_that_a_killed_attempt_left_is_an_incident_of_its_own(campaign: Campaign, unbroken: Campaign) -> None:
    done = campaign.run(*IN_ONE_SEGMENT, "--fault", "corrupt-checkpoint:step=6", "--fault", "kill:rank=1,step=8")

    summary = assert_complete(done, campaign)
    assert causes(summary) == [("process_crash", "retry_same_nodes"), ("checkpoint_invalid", "roll_back")]
    assert [incident["lost_steps"] for incident in summary["incidents"]] == [1, 3]
    assert campaign.digest() == unbroken.digest()
