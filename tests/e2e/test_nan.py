"""Fault: nan. Broken, healed, compared with the unbroken experiment."""

from e2e.campaign import IN_ONE_SEGMENT, Campaign, assert_complete, causes


def test_poisoned_gradient_rolls_back_and_the_second_time_skips_its_batch(campaign: Campaign, unbroken: Campaign) -> None:
    done = campaign.run(*IN_ONE_SEGMENT, "--fault", "nan:rank=1,step=5", "--fault", "nan:step=5,rank=1")

    summary = assert_complete(done, campaign)
    assert causes(summary) == [("non_finite", "roll_back"), ("non_finite", "roll_back_and_skip")]
    assert summary["incidents"][0]["culprit"] == "node-1, rank 1"
    assert campaign.digest() != unbroken.digest(), "a batch was left out"
