"""A small corpus, and an experiment that prepares it."""

import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from prunella import config_text
from prunella.config import Config
from prunella.data.manifest import DatasetManifest, load_manifest
from prunella.data_prep import stage
from prunella.ledger import Ledger, open_ledger
from prunella.records import DataPrepRecord, DataPrepRequest, ExperimentRecord, Stage
from prunella.storage import create_root

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "sigma", "tau")
SMALL = (
    "model.vocab_size=300",
    "model.seq_len=16",
    "batch.global_sequences=4",
    "data.shard_tokens=1024",
    "data.heldout_fraction=0.1",
    "data.tokenizer_train_bytes=5000",
    "data.workers=1",
)


def write_corpus(folder: Path, *, documents: int = 40, words: int = 250, seed: int = 1) -> Path:
    """Text files of random words, one document each."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(documents):
        text = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 2 * words)))
        (folder / f"{number:03d}.txt").write_text(f"{text} ä{number}\n", encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Experiment:
    """An opened experiment under a root of its own, and the stage run on it."""

    ledger: Ledger
    config: Config

    def prepare(self, **request: object) -> DataPrepRecord:
        """Run the stage and store its record as the graph does, where there is none yet."""
        root, name, key = self.ledger.store.root, self.ledger.name, self.ledger.dataset_key
        record = stage.run(
            self.config,
            DataPrepRequest(stage=Stage.DATA_PREP, root=root, experiment=name, config_digest="d", output=key, **request),
        )
        if not self.ledger.store.exists(key):
            self.ledger.put(key, record)
        return record

    def manifest(self) -> DatasetManifest:
        """The manifest of the recorded data set."""
        record = self.ledger.find(DataPrepRecord, self.ledger.dataset_key)
        return load_manifest(self.ledger.store, record.fingerprint, record.manifest_sha256)

    def files(self) -> dict[str, bytes]:
        """Everything under `datasets/`, by path."""
        base = Path(self.ledger.store.root) / "datasets"
        return {path.relative_to(base).as_posix(): path.read_bytes() for path in base.rglob("*") if path.is_file()}

    def path(self, key: str) -> Path:
        """The local file of an object."""
        return self.ledger.store.local_path(key)


def open_experiment(root: Path, *settings: str, faults: tuple[str, ...] = ()) -> Experiment:
    """Open an experiment with small settings, overridden by `settings`."""
    config = config_text.override(Config(), [*SMALL, *settings])
    create_root(str(root))
    ledger = open_ledger(str(root), "demo", settings=config.storage)
    mapping = config_text.to_mapping(config)
    record = ExperimentRecord(name="demo", opened_ns=1, config=mapping, config_digest="d", faults=faults, versions={})
    ledger.put(ledger.experiment_key, record)
    return Experiment(ledger, config)


@pytest.fixture
def corpus(tmp_path):
    """A folder of forty documents, about 60 kB, five or six training shards."""
    return write_corpus(tmp_path / "corpus")


@pytest.fixture
def experiment(tmp_path, corpus):
    """An experiment on `corpus`."""
    return open_experiment(tmp_path / "root", f'data.inputs=["{corpus}"]')


@pytest.fixture
def open_on(tmp_path):
    """Opens further experiments: `open_on(root name, *settings, faults=())`."""
    return lambda name, *settings, faults=(): open_experiment(tmp_path / name, *settings, faults=faults)


@pytest.fixture
def make_corpus():
    """Writes further corpora."""
    return write_corpus
