"""Fault: kill. Broken, healed, compared with the unbroken experiment."""

from functools import partial
from pathlib import Path

import psutil
import pytest

from e2e.campaign import IN_ONE_SEGMENT, Campaign, assert_complete, causes, processes_of
from waiting import PATIENCE_S, wait_until


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


@pytest.mark.slow
def test_a_gate_that_lost_both_its_processes_asks_nobody_and_is_tried_again(campaign: Campaign, unbroken: Campaign) -> None:
    command = campaign.start(*IN_ONE_SEGMENT)
    for process in wait_until(partial(both_of_the_gate, campaign), "the gate of the links runs on both nodes", command=command):
        process.kill()

    assert command.wait(PATIENCE_S) == 0, (campaign.folder / "run.log").read_text()[-6000:]
    assert causes(campaign.summary()) == [("node_unhealthy", "retry_same_nodes")]
    assert campaign.digest() == unbroken.digest()


def both_of_the_gate(campaign: Campaign) -> list[psutil.Process]:
    """The processes of two nodes that exchange data in a gate of the links; none unless both run."""
    found = [process for process in processes_of(campaign) if is_of_the_gate(process)]
    return found if len(found) == 2 else []


def is_of_the_gate(process: psutil.Process) -> bool:
    try:
        return any("fabric_worker" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False
