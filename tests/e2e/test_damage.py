"""Bytes under the root that change behind everybody's back, where no fault of ours changes them."""

import time
from pathlib import Path

import pytest

from e2e.campaign import STEPS_PER_SEGMENT, Campaign, assert_complete, causes


def flip_bit(path: Path) -> None:
    """One bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(content))


@pytest.mark.slow
def test_damaged_manifest_costs_its_checkpoint_only(campaign: Campaign, unbroken: Campaign) -> None:
    first = campaign.run("--segments", "1")
    manifests = sorted(campaign.root.glob("experiments/*/checkpoints/*/manifest.json"))
    flip_bit(manifests[-1])
    campaign.prunella("extend", "--segments", "2", "--reason", "more data came")

    assert_complete(campaign.run("--segments", "2"), campaign)

    assert first.returncode == 0, first.stderr
    assert campaign.digest() == unbroken.digest()


@pytest.mark.slow
def test_flipped_bit_in_the_probe_batch_is_mended_from_the_corpus(campaign: Campaign, unbroken: Campaign) -> None:
    running = campaign.start("--fault", f"kill:rank=1,step={2 * STEPS_PER_SEGMENT - 1}")
    is_training = campaign.root / "experiments/experiment/segments/0001/attempts/00/requests/training_segment.json"
    while not is_training.exists() and running.poll() is None:
        time.sleep(0.05)
    (heldout,) = campaign.root.glob("datasets/*/heldout-00000.bin")
    flip_bit(heldout)
    code = running.wait(timeout=300)

    assert code == 0, (campaign.folder / "run.log").read_text()[-6000:]
    summary = campaign.summary()
    assert causes(summary) == [("process_crash", "retry_same_nodes"), ("data_corrupt", "retry_same_nodes")]
    assert campaign.digest() == unbroken.digest()
