"""Fault: kill. Broken, healed, compared with the unbroken experiment."""

from pathlib import Path

import pytest

from e2e.campaign import IN_ONE_SEGMENT, Campaign, assert_complete, causes


def test_killed_rank_is_retried_then_its_node_replaced_with_the_unbroken_digest(campaign: Campaign, unbroken: Campaign) -> None:
    done = campaign.run(*IN_ONE_SEGMENT, "--fault", "kill:rank=1,step=5", "--fault", "kill:rank=1,step=6")

    summary = assert_complete(done, campaign)
    assert causes(summary) == [("process_crash", "retry_same_nodes"), ("process_crash", "replace_node")]
    assert summary["incidents"][0]["culprit"] == "node-1, rank 1"
    assert campaign.digest() == unbroken.digest()


@pytest.mark.slow
def test_a_rank_killed_more_often_than_there_are_nodes_ends_with_the_unbroken_digest(
    campaign: Campaign, unbroken: Campaign
) -> None:
    faults = [word for step in (2, 5, 8, 11) for word in ("--fault", f"kill:rank=0,step={step}")]

    summary = assert_complete(campaign.run(*IN_ONE_SEGMENT, *faults), campaign)

    assert causes(summary) == [
        ("process_crash", "retry_same_nodes"),
        ("process_crash", "replace_node"),
        ("process_crash", "retry_same_nodes"),
        ("process_crash", "retry_same_nodes"),
    ], "the last node that could be spared is kept"
    assert campaign.digest() == unbroken.digest()


@pytest.mark.slow
def test_three_nodes_heal_with_the_digest_of_three_unbroken_ones(tmp_path: Path) -> None:
    three = (*IN_ONE_SEGMENT, "--nodes", "3", "--set", "batch.global_sequences=12")
    calm, storm = Campaign(tmp_path / "calm"), Campaign(tmp_path / "storm")

    assert_complete(calm.run(*three), calm)
    summary = assert_complete(storm.run(*three, "--fault", "kill:rank=2,step=5"), storm)

    assert causes(summary) == [("process_crash", "retry_same_nodes")]
    assert storm.digest() == calm.digest()
