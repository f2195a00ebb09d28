"""Fault: bad-node. Broken, healed, compared with the unbroken experiment."""

import pytest

from e2e.campaign import Campaign, assert_complete, causes


@pytest.mark.slow
def test_node_whose_arithmetic_turns_bad_is_replaced_with_the_unbroken_digest(campaign: Campaign, unbroken: Campaign) -> None:
    done = campaign.run("--fault", "bad-node:node=node-1,segment=1")

    summary = assert_complete(done, campaign)
    assert causes(summary) == [("node_unhealthy", "replace_node")]
    assert summary["attempts"] == 2
    assert campaign.digest() == unbroken.digest()


def test_too_few_healthy_nodes_stop_the_run_with_advice(campaign: Campaign) -> None:
    fleet = campaign.folder.parent / "fleet.yaml"
    fleet.write_text("nodes:\n  - name: node-0\n  - name: node-1\n")

    done = campaign.run("--fleet", str(fleet), "--fault", "bad-node:node=node-1,segment=0")

    assert done.returncode == 1
    assert "prunella node" in done.stderr
    assert campaign.summary()["state"] == "failed"
