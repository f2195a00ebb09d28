"""Fault: cuts. Broken, healed, compared with the unbroken experiment."""

import pytest

from e2e.campaign import IN_ONE_SEGMENT, Campaign, assert_complete


def test_one_segment_ends_where_two_do(campaign: Campaign, unbroken: Campaign) -> None:
    done = campaign.run(*IN_ONE_SEGMENT)

    assert_complete(done, campaign)
    assert campaign.digest() == unbroken.digest()
    assert campaign.digest("--step", "9") != unbroken.digest()


@pytest.mark.slow
def test_four_segments_end_where_two_do(campaign: Campaign, unbroken: Campaign) -> None:
    done = campaign.run("--segments", "4", "--steps-per-segment", "3")

    assert_complete(done, campaign)
    assert campaign.digest() == unbroken.digest()


@pytest.mark.slow
def test_another_seed_ends_elsewhere(campaign: Campaign, unbroken: Campaign) -> None:
    done = campaign.run(*IN_ONE_SEGMENT, "--set", "seed=8")

    assert_complete(done, campaign)
    assert campaign.digest() != unbroken.digest()
