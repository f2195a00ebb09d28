"""Every stage is a container: same faults, same healing, same digest."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.campaign import IN_ONE_SEGMENT, Campaign, assert_complete, causes
from engine import engine_with
from prunella.launch.images import TRAINER, WORKER


@pytest.fixture(scope="module", autouse=True)
def engine() -> Iterator[None]:
    with engine_with(TRAINER, WORKER):
        yield


@pytest.mark.slow
def test_experiment_in_containers_heals_a_killed_rank_with_the_digest_of_processes(
    campaign: Campaign, unbroken: Campaign
) -> None:
    done = campaign.run(*IN_ONE_SEGMENT, "--fault", "kill:rank=1,step=5")

    assert causes(assert_complete(done, campaign)) == [("process_crash", "retry_same_nodes")]
    assert campaign.digest() == unbroken.digest()
    assert list(Path(campaign.root, "published").rglob("report.html"))
