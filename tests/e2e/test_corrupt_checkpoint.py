"""Fault: corrupt-checkpoint. Broken, healed, compared with the unbroken experiment."""

import pytest

from e2e.campaign import IN_ONE_SEGMENT, Campaign, assert_complete, causes


@pytest.mark.slow
def test_rotten_checkpoint_is_rejected_and_rolled_back_with_the_unbroken_digest(campaign: Campaign, unbroken: Campaign) -> None:
    done = campaign.run(*IN_ONE_SEGMENT, "--fault", "corrupt-checkpoint:step=12")

    summary = assert_complete(done, campaign)
    assert causes(summary) == [("checkpoint_invalid", "roll_back")]
    assert summary["checkpoints"]["rejected"] == 1
    assert campaign.digest() == unbroken.digest()
