"""The disk of the object store fills up: one incident, nothing half written; with room again, the same command completes."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.campaign import IN_ONE_SEGMENT, SEGMENTS, STEPS_PER_SEGMENT, Campaign
from small_disk import small_disk as disk

#: The data set and one candidate fit, not two.
SMALL_BYTES = 1_200_000
ENOUGH_BYTES = 200_000_000


@pytest.fixture
def small_disk(campaign: Campaign) -> Iterator[Path]:
    """The campaign's root as a file system of its own."""
    with disk(campaign.root, SMALL_BYTES) as root:
        yield root


@pytest.mark.slow
def test_full_disk_is_an_incident_and_with_room_the_same_command_completes(
    campaign: Campaign, unbroken: Campaign, small_disk: Path
) -> None:
    full = campaign.run(*IN_ONE_SEGMENT)
    half_written = list(small_disk.rglob(".tmp*"))
    incidents = campaign.summary()["incidents"]

    assert full.returncode == 1
    assert "Traceback" not in full.stderr
    assert "no room for object" in full.stderr.splitlines()[-1]
    assert half_written == []
    assert [incident["cause"] for incident in incidents] == ["storage_unavailable"]

    subprocess.run(["mount", "-o", f"remount,size={ENOUGH_BYTES}", str(small_disk)], check=True)
    done = campaign.run(*IN_ONE_SEGMENT)

    assert done.returncode == 0, done.stderr[-4000:]
    summary = campaign.summary()
    assert (summary["state"], summary["steps"]) == ("complete", SEGMENTS * STEPS_PER_SEGMENT)
    assert campaign.digest() == unbroken.digest()


def test_disk_that_is_full_from_the_start_is_refused_in_one_line(campaign: Campaign, small_disk: Path) -> None:
    fill(small_disk)

    done = campaign.run()

    assert done.returncode == 2
    assert "no room for object" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(small_disk.rglob("*.json")) == []


@pytest.mark.slow
def test_disk_without_room_for_a_record_ends_the_command_in_one_line(campaign: Campaign, small_disk: Path) -> None:
    fill(small_disk)
    with (small_disk / "ballast").open("r+b") as ballast:
        ballast.truncate(ballast.seek(0, 2) - 4096)  # room for the experiment, and for nothing after it

    done = campaign.run()

    assert done.returncode == 1
    assert "no room for object" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert [path.name for path in small_disk.rglob("*.json")] == ["experiment.json"]


def fill(disk: Path) -> None:
    """Leave no byte free."""
    with (disk / "ballast").open("wb", buffering=0) as ballast:
        while True:
            try:
                ballast.write(bytes(4096))
            except OSError:
                return
