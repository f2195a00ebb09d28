"""Fault: hang. Broken, healed, compared with the unbroken experiment."""

import pytest

from e2e.campaign import IN_ONE_SEGMENT, Campaign, assert_complete, causes


@pytest.mark.slow
def test_hung_rank_is_found_and_retried_with_the_unbroken_digest(campaign: Campaign, unbroken: Campaign) -> None:
    done = campaign.run(*IN_ONE_SEGMENT, "--fault", "hang:rank=0,step=8")

    summary = assert_complete(done, campaign)
    assert causes(summary) == [("hang", "retry_same_nodes")]
    assert summary["incidents"][0]["culprit"] == "node-0, rank 0"
    assert campaign.digest() == unbroken.digest()
