"""Faults: truncate-shard, nan, corrupt-checkpoint, one after another in one experiment, compared with the unbroken one."""

import pytest

from e2e.campaign import IN_ONE_SEGMENT, Campaign, assert_complete, causes


@pytest.mark.slow
def test_cut_data_a_gradient_poisoned_once_and_a_rotten_checkpoint_each_heal_with_the_unbroken_digest(
    campaign: Campaign, unbroken: Campaign
) -> None:
    faults = ("truncate-shard:shard=0", "nan:rank=0,step=8", "corrupt-checkpoint:step=12")

    done = campaign.run(*IN_ONE_SEGMENT, *(word for fault in faults for word in ("--fault", fault)))

    summary = assert_complete(done, campaign)
    assert causes(summary) == [
        ("data_corrupt", "retry_same_nodes"),
        ("non_finite", "roll_back"),
        ("checkpoint_invalid", "roll_back"),
    ]
    assert summary["checkpoints"]["rejected"] == 1
    assert campaign.digest() == unbroken.digest()
