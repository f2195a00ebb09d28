"""Data prep: from text to the token data set that training, validation and evaluation read.

Decides what the experiment's tokens are, once. A data set is found by its fingerprint, and every part by its sha256; what
is there and whole is kept, what is missing or damaged is built from the corpus. An experiment that has its data set no
longer needs the corpus. It never changes a committed data set, and never trains, evaluates or heals anything.
"""

import hashlib
import logging
import time

from prunella.config import Config
from prunella.data.manifest import HELDOUT, DatasetManifest, count_sequences
from prunella.data_prep.build import build_dataset
from prunella.data_prep.inspection import Inspection, inspect_dataset
from prunella.data_prep.survey import Survey, take_survey
from prunella.errors import ConfigError, DataCorrupt
from prunella.faults import truncate
from prunella.ledger import Ledger, open_ledger
from prunella.records import DataPrepRecord, DataPrepRequest, Part, Span, Stage, Verdict, to_bytes

logger = logging.getLogger(__name__)


def run(config: Config, request: DataPrepRequest) -> DataPrepRecord:
    """Prepare, verify or repair the experiment's data set.

    Sizes are checked always, every byte when the request is a repair or names inputs.

    Raises:
        ConfigError: an input is missing or bad, the corpus is too small, the vocabulary does not fit.
        DataCorrupt: the corpus is no longer what the experiment was opened with.
        StorageUnavailable, StorageFull: the store.
    """
    started_ns = time.time_ns()
    ledger = open_ledger(request.root, request.experiment, settings=config.storage)
    recorded = _recorded(ledger)
    survey = None if recorded else take_survey(config, ledger.store)
    inspection = _inspect(ledger, survey, recorded, is_full=request.is_repair or bool(request.inputs))
    manifest = inspection.manifest
    if manifest is None or not inspection.is_sound:
        survey = survey or take_survey(config, ledger.store)
        _require_same_corpus(survey, recorded)
        sha256 = recorded.manifest_sha256 if recorded else None
        manifest = build_dataset(ledger.store, survey, config, inspection, manifest_sha256=sha256)
    _require_enough(manifest, config)
    _cut_shards(ledger, manifest)
    return _record(manifest, inspection, survey, started_ns)


def _recorded(ledger: Ledger) -> DataPrepRecord | None:
    """What an earlier run of this stage answered for the experiment, if it was accepted."""
    record = ledger.find_stage_record(DataPrepRecord, ledger.dataset_key)
    return record if isinstance(record, DataPrepRecord) and record.verdict is Verdict.ACCEPTED else None


def _inspect(ledger: Ledger, survey: Survey | None, recorded: DataPrepRecord | None, *, is_full: bool) -> Inspection:
    if recorded is not None:
        sha256: str | None = recorded.manifest_sha256
        return inspect_dataset(ledger.store, recorded.fingerprint, manifest_sha256=sha256, is_full=is_full)
    assert survey is not None
    return inspect_dataset(ledger.store, survey.fingerprint, manifest_sha256=None, is_full=is_full)


def _require_same_corpus(survey: Survey, recorded: DataPrepRecord | None) -> None:
    if recorded is not None and survey.fingerprint != recorded.fingerprint:
        raise DataCorrupt(
            f"the data set {recorded.fingerprint} is damaged and cannot be rebuilt: the corpus (or the tokenizers library) "
            f"now gives {survey.fingerprint}; restore what it was, or start a new experiment"
        )


def _require_enough(manifest: DatasetManifest, config: Config) -> None:
    seq_len, batch = config.model.seq_len, config.batch.global_sequences
    train, heldout = count_sequences(manifest.train_tokens, seq_len), count_sequences(manifest.heldout_tokens, seq_len)
    if train < batch:
        raise ConfigError(
            f"the corpus gives {train} training sequences of model.seq_len={seq_len} tokens ({manifest.train_tokens} tokens), "
            f"expected at least batch.global_sequences={batch}; add text to data.inputs, raise data.max_bytes, "
            "or lower one of the two"
        )
    if heldout < 1:
        raise ConfigError(
            f"the held-out documents give {manifest.heldout_tokens} tokens, expected more than model.seq_len={seq_len}; "
            f"add text to data.inputs or raise data.heldout_fraction={config.data.heldout_fraction}"
        )


def _cut_shards(ledger: Ledger, manifest: DatasetManifest) -> None:
    """Act out `truncate-shard`, where it was asked for and has not fired."""
    switch = ledger.fault_switch()
    if switch is None:
        return
    for fault in switch.of_kind("truncate-shard"):
        number = fault.shard or 0
        if number >= len(manifest.train):
            raise ConfigError(
                f"--fault {fault.spec}: there is no such shard; training shards are 0 to {len(manifest.train) - 1}"
            )
        if switch.fire(fault):
            truncate(ledger.store, manifest.train[number].file.key)


def _record(manifest: DatasetManifest, inspection: Inspection, survey: Survey | None, started_ns: int) -> DataPrepRecord:
    """`repaired_shards` are numbers inside their split, training shards first."""
    ended_ns = time.time_ns()
    return DataPrepRecord(
        stage=Stage.DATA_PREP,
        verdict=Verdict.ACCEPTED,
        started_ns=started_ns,
        ended_ns=ended_ns,
        spans=(Span(part=Part.DATA_PREPARATION, start_ns=started_ns, end_ns=ended_ns),),
        fingerprint=manifest.fingerprint,
        manifest_sha256=hashlib.sha256(to_bytes(manifest)).hexdigest(),
        train_tokens=manifest.train_tokens,
        heldout_tokens=manifest.heldout_tokens,
        documents=manifest.documents,
        quarantined=len(survey.quarantined if survey else manifest.quarantined),
        repaired_shards=tuple(number for split, number in sorted(inspection.damaged, key=lambda it: it[0] == HELDOUT)),
    )
