"""The root is a bucket: the same faults, the same healing, the same digest as in a folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from buckets import Bucket, moto_bucket
from e2e.campaign import IN_ONE_SEGMENT, Campaign, assert_complete, causes
from fault_proxy import fault_proxy
from radosgw import radosgw_bucket


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with moto_bucket() as made:
        yield made


@pytest.fixture(scope="module")
def bucket_of_ceph() -> Iterator[Bucket]:
    with radosgw_bucket() as made:
        yield made


def campaign_in(bucket: Bucket, tmp_path: Path) -> Campaign:
    """A new experiment under a prefix of its own."""
    return Campaign(tmp_path / "campaign", environment=bucket.environment, bucket=f"{bucket.root}/{tmp_path.name}")


@pytest.mark.slow
def test_experiment_in_a_bucket_heals_faults_of_the_store_with_the_digest_of_the_folder(
    bucket: Bucket, tmp_path: Path, unbroken: Campaign
) -> None:
    in_bucket = campaign_in(bucket, tmp_path)

    done = in_bucket.run(*IN_ONE_SEGMENT, "--fault", "truncate-shard:shard=0", "--fault", "corrupt-checkpoint:step=12")

    found = causes(assert_complete(done, in_bucket))
    assert found == [("data_corrupt", "retry_same_nodes"), ("checkpoint_invalid", "roll_back")]
    assert in_bucket.digest() == unbroken.digest()
    assert list((in_bucket.folder / "published").rglob("report.html"))


@pytest.mark.slow
def test_rank_killed_over_a_bucket_of_ceph_heals_with_the_digest_of_the_folder(
    bucket_of_ceph: Bucket, tmp_path: Path, unbroken: Campaign
) -> None:
    in_ceph = campaign_in(bucket_of_ceph, tmp_path)

    done = in_ceph.run(*IN_ONE_SEGMENT, "--sole-writer", "--fault", "kill:rank=1,step=5")

    assert causes(assert_complete(done, in_ceph)) == [("process_crash", "retry_same_nodes")]
    assert in_ceph.digest() == unbroken.digest()


def test_bucket_of_ceph_asks_for_the_word_of_its_only_writer_in_one_line(bucket_of_ceph: Bucket, tmp_path: Path) -> None:
    done = campaign_in(bucket_of_ceph, tmp_path).run()

    assert done.returncode != 0
    assert "if this is the only one, pass --sole-writer" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_experiment_behind_a_network_that_cuts_refuses_and_lies_ends_with_the_digest_of_the_folder(
    bucket: Bucket, tmp_path: Path, unbroken: Campaign
) -> None:
    with fault_proxy(bucket.environment["AWS_ENDPOINT_URL_S3"], seed=5) as (address, schedule):
        behind = Bucket(root=bucket.root, environment={**bucket.environment, "AWS_ENDPOINT_URL_S3": address})
        campaign = campaign_in(behind, tmp_path)
        done = campaign.run(
            *IN_ONE_SEGMENT, "--fault", "kill:rank=1,step=5", "--set", "storage.first_delay_s=0.02", timeout_s=1000.0
        )
        schedule.is_off = True

        assert len(schedule.faults) > 100, "the schedule did little"
        assert "process_crash" in [cause for cause, _ in causes(assert_complete(done, campaign))]
        assert campaign.digest() == unbroken.digest()


@pytest.mark.parametrize(
    ("environment", "root", "message"),
    [
        ({}, "s3://no-such-bucket/x", "there is no such bucket; make it, or correct --root"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, None, "no credentials; set AWS_ACCESS_KEY_ID or a profile"),
    ],
    ids=["missing bucket", "no credentials"],
)
def test_bucket_that_cannot_be_used_is_refused_in_one_line(
    bucket: Bucket, tmp_path: Path, environment: dict[str, str], root: str | None, message: str
) -> None:
    nowhere = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"), "AWS_CONFIG_FILE": str(tmp_path / "none")}
    settings = {**bucket.environment, **nowhere, **environment}

    done = Campaign(tmp_path / "campaign", environment=settings, bucket=root or bucket.root).run()

    assert done.returncode != 0
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
