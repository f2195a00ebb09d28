"""Fault: corrupt-checkpoint. Broken, healed, compared with the unbroken experiment."""

import pytest

from e2e.campaign import Campaign, assert_complete, causes


@pytest.mark.slow
def test_rotten_checkpoint_is_rejected_and_rolled_back_with_the_unbroken_digest(campaign: Campaign, unbroken: Campaign) -> None:
    done = campaign.run("--fault", "corrupt-checkpoint:step=6")

    summary = assert_complete(done, campaign)
    assert causes(summary) == [("checkpoint_invalid", "roll_back")]
    assert summary["checkpoints"]["rejected"] == 1
    assert campaign.digest() == unbroken.digest()
