"""kill -9 of a real process in the middle of a build: what was committed is kept, the rest is built, no byte differs."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prunella.data.manifest import load_manifest, manifest_key
from prunella.errors import DataCorrupt

#: Runs the stage and kills itself, by the kernel's hand, as soon as the n-th event of a name is logged.
_PROGRAM = """
import logging, os, signal, sys
from prunella.data_prep import stage
from prunella.ledger import open_ledger
from prunella.records import DataPrepRequest, Stage

root, event, count = sys.argv[1], sys.argv[2], int(sys.argv[3])

class Killer(logging.Handler):
    seen = 0
    def emit(self, record):
        self.seen += record.getMessage().startswith(event)
        if self.seen == count:
            os.kill(os.getpid(), signal.SIGKILL)

logging.getLogger("prunella").addHandler(Killer())
logging.getLogger("prunella").setLevel(logging.INFO)
ledger = open_ledger(root, "demo")
stage.run(ledger.config(), DataPrepRequest(
    stage=Stage.DATA_PREP, root=root, experiment="demo", config_digest="d", output=ledger.dataset_key))
"""


def run_until_killed(experiment, event, count):
    command = [sys.executable, "-c", _PROGRAM, experiment.ledger.store.root, event, str(count)]
    finished = subprocess.run(command, timeout=120, check=False)
    assert finished.returncode == -signal.SIGKILL, "the process was not killed where the test wanted it"


def shard_files(experiment):
    folder = next((Path(experiment.ledger.store.root) / "datasets").iterdir())
    return {path.name: path.stat().st_ino for path in folder.glob("*.bin")}


@pytest.fixture
def twins(open_on, corpus):
    """The same experiment twice: one to break, one that nobody breaks."""
    return [open_on(name, f'data.inputs=["{corpus}"]', "data.workers=2") for name in ("broken", "unbroken")]


@pytest.mark.parametrize(
    ("event", "count"), [("corpus_surveyed", 1), ("dataset_build_started", 1), ("shard_committed", 1), ("shard_committed", 4)]
)
def test_a_killed_build_continues_and_ends_with_the_same_bytes(twins, event, count):
    broken, unbroken = twins
    run_until_killed(broken, event, count)
    survived = shard_files(broken) if event == "shard_committed" else {}

    record = broken.prepare()

    assert record.manifest_sha256 == unbroken.prepare().manifest_sha256
    assert broken.files() == unbroken.files()
    assert len(survived) == (count if survived else 0)
    assert survived.items() <= shard_files(broken).items(), "committed shards were kept, not written again"


def test_a_shard_damaged_after_the_kill_is_found_and_built_again(twins):
    broken, unbroken = twins
    run_until_killed(broken, "shard_committed", 3)
    folder = next((Path(broken.ledger.store.root) / "datasets").iterdir())
    damaged = bytearray((folder / "train-00001.bin").read_bytes())
    damaged[7] ^= 1
    (folder / "train-00001.bin").write_bytes(damaged)

    broken.prepare()
    unbroken.prepare()

    assert broken.files() == unbroken.files()


def test_a_kill_between_a_shard_and_its_record_costs_nothing(twins):
    broken, unbroken = twins
    run_until_killed(broken, "shard_committed", 3)
    folder = next((Path(broken.ledger.store.root) / "datasets").iterdir())
    (folder / "parts" / "train-00002.json").unlink()

    broken.prepare()
    unbroken.prepare()

    assert broken.files() == unbroken.files()
    assert broken.ledger.store.list("set-aside") == []


def test_nothing_reads_a_data_set_that_a_kill_left_unfinished(twins):
    broken, _ = twins
    run_until_killed(broken, "shard_committed", 4)
    fingerprint = broken.ledger.store.list("datasets")[0]

    assert not broken.ledger.store.exists(manifest_key(fingerprint))
    with pytest.raises(DataCorrupt, match="no such data set"):
        load_manifest(broken.ledger.store, fingerprint)
