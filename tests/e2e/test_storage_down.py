"""Fault: storage-down. Broken, healed, compared with the unbroken experiment."""

import pytest

from e2e.campaign import IN_ONE_SEGMENT, Campaign, assert_complete, causes


@pytest.mark.slow
def test_short_outage_of_the_store_is_waited_out_with_the_unbroken_digest(campaign: Campaign, unbroken: Campaign) -> None:
    done = campaign.run(*IN_ONE_SEGMENT, "--fault", "storage-down:seconds=5,step=4")

    summary = assert_complete(done, campaign)
    assert [cause for cause, _ in causes(summary)] == ["storage_unavailable"]
    assert campaign.digest() == unbroken.digest()


@pytest.mark.slow
def test_outage_longer_than_the_patience_of_a_call_is_retried(campaign: Campaign, unbroken: Campaign) -> None:
    done = campaign.run(*IN_ONE_SEGMENT, "--fault", "storage-down:seconds=25,step=4", "--set", "storage.retry_s=5")

    summary = assert_complete(done, campaign)
    assert "storage_unavailable" in [cause for cause, _ in causes(summary)]
    assert campaign.digest() == unbroken.digest()
