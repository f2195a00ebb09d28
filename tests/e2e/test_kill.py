"""Fault: kill. Broken, healed, compared with the unbroken experiment."""

from e2e.campaign import IN_ONE_SEGMENT, Campaign, assert_complete, causes


def test_killed_rank_is_retried_then_its_node_replaced_with_the_unbroken_digest(campaign: Campaign, unbroken: Campaign) -> None:
    done = campaign.run(*IN_ONE_SEGMENT, "--fault", "kill:rank=1,step=5", "--fault", "kill:rank=1,step=6")

    summary = assert_complete(done, campaign)
    assert causes(summary) == [("process_crash", "retry_same_nodes"), ("process_crash", "replace_node")]
    assert summary["incidents"][0]["culprit"] == "node-1, rank 1"
    assert campaign.digest() == unbroken.digest()
