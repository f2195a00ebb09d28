"""Bytes under the root that change behind everybody's back, where no fault of ours changes them."""

import signal
from pathlib import Path

import pytest

from e2e.campaign import SEGMENTS, STEPS_PER_SEGMENT, Campaign, assert_complete, causes, wait_for


def flip_bit(path: Path) -> None:
    """One bit in the middle of a file, in its place: others have it mapped."""
    path.chmod(0o644)
    middle = path.stat().st_size // 2
    with path.open("r+b") as file:
        file.seek(middle)
        (byte,) = file.read(1)
        file.seek(middle)
        file.write(bytes([byte ^ 1]))


@pytest.mark.slow
def test_damaged_manifest_costs_its_checkpoint_only(campaign: Campaign, unbroken: Campaign) -> None:
    running = campaign.start()
    wait_for(campaign.root / "experiments/experiment/segments/0000/closed/00.json", running)
    running.send_signal(signal.SIGINT)
    running.wait(timeout=120)
    flip_bit(sorted(campaign.root.glob("experiments/*/checkpoints/*/manifest.json"))[-1])

    assert_complete(campaign.run(), campaign)

    assert campaign.digest() == unbroken.digest()


@pytest.mark.slow
def test_flipped_bit_in_the_probe_batch_is_mended_from_the_corpus(campaign: Campaign, unbroken: Campaign) -> None:
    running = campaign.start("--fault", f"kill:rank=1,step={SEGMENTS * STEPS_PER_SEGMENT - 1}")
    wait_for(campaign.root / "experiments/experiment/checkpoints/0001-00-0000/manifest.json", running)
    (heldout,) = campaign.root.glob("datasets/*/heldout-00000.bin")
    flip_bit(heldout)
    code = running.wait(timeout=300)

    assert code == 0, (campaign.folder / "run.log").read_text()[-6000:]
    summary = campaign.summary()
    assert causes(summary) == [("process_crash", "retry_same_nodes"), ("data_corrupt", "retry_same_nodes")]
    assert campaign.digest() == unbroken.digest()
