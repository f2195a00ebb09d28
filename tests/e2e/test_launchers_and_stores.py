"""Launchers other than processes on stores other than a folder: one digest, wherever a stage runs and whatever the root is."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from buckets import Bucket, moto_bucket
from e2e.campaign import IN_ONE_SEGMENT, Campaign, assert_complete, causes
from engine import engine_with
from prunella.launch.images import TRAINER, WORKER
from radosgw import radosgw_bucket

#: How experiments are run there, and what has to be there for it.
LAUNCHERS: dict[str, tuple[tuple[str, ...], Callable[[], AbstractContextManager[None]]]] = {
    "container": (("run",), lambda: engine_with(TRAINER, WORKER)),
    "pipeline": (("pipeline", "run-local"), nullcontext),
}
#: The bucket, and what its server wants to be told.
STORES: dict[str, tuple[Callable[[], AbstractContextManager[Bucket]], tuple[str, ...]]] = {
    "moto": (moto_bucket, ()),
    "radosgw": (radosgw_bucket, ("--sole-writer",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_killed_rank_heals_on_every_launcher_and_store_with_the_digest_of_processes_in_a_folder(
    launcher: str, store: str, tmp_path: Path, unbroken: Campaign
) -> None:
    runs_by, launching = LAUNCHERS[launcher]
    serving, options = STORES[store]
    with launching(), serving() as bucket:
        root = f"{bucket.root}/{tmp_path.name}"
        campaign = Campaign(tmp_path / "campaign", environment=bucket.environment, runs_by=runs_by, bucket=root)

        done = campaign.run(*IN_ONE_SEGMENT, *options, "--fault", "kill:rank=1,step=5")

        assert causes(assert_complete(done, campaign)) == [("process_crash", "retry_same_nodes")]
        assert campaign.digest() == unbroken.digest()
