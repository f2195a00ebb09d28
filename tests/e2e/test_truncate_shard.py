"""Fault: truncate-shard. Broken, healed, compared with the unbroken experiment."""

import pytest

from e2e.campaign import IN_ONE_SEGMENT, Campaign, assert_complete, causes


@pytest.mark.slow
def test_truncated_shard_is_rebuilt_from_the_corpus_with_the_unbroken_digest(campaign: Campaign, unbroken: Campaign) -> None:
    done = campaign.run(*IN_ONE_SEGMENT, "--fault", "truncate-shard:shard=0")

    summary = assert_complete(done, campaign)
    assert causes(summary) == [("data_corrupt", "retry_same_nodes")]
    assert campaign.digest() == unbroken.digest()
