"""The only source of truth: immutable records of experiments and fleet in the object store.

Keys are dense and probed, never listed for truth; a set exists when its manifest, written last, exists. Whoever creates
`attempts/<n>/opened.json` holds token n, and every older writer of that segment is fenced. Reading never repairs, and
absence is reported as `None` for the caller to judge.

    experiments/<name>/experiment.json  dataset.json  directives/0000.json  faults/<kind>-<hash>.json
    experiments/<name>/segments/0000/runs/00.json  closed/00.json
    experiments/<name>/segments/0000/attempts/00/opened.json  resume.json  decision.json
    experiments/<name>/segments/0000/attempts/00/requests/<stage>.json  records/<stage>.json  records/<stage>.launched-0.json
    experiments/<name>/segments/0000/attempts/00/metrics/000001-000010.jsonl
    experiments/<name>/checkpoints/0000-00-0000/<files>  manifest.json  verdict.json  promoted.json  revoked.json  pruned.json
    fleet/nodes/<name>/0000.json
    datasets/<fingerprint>/<files>  manifest.json
"""

import hashlib
import itertools
import logging
import re
from typing import TypeVar

from prunella import codec, config_text
from prunella import faults as fault_module
from prunella.config import Config, StorageConfig
from prunella.errors import ConfigError, DigestMismatch, Fenced, KeyExists, KeyMissing
from prunella.records import (
    AttemptOpened,
    CheckpointManifest,
    CheckpointMark,
    CheckpointRef,
    DecisionRecord,
    Directive,
    ExperimentRecord,
    FailedRecord,
    NodeEvent,
    Record,
    Request,
    ResumePoint,
    SegmentClosed,
    SegmentOpened,
    StageRecord,
    ValidationRecord,
    from_bytes,
    stage_record_from_bytes,
    to_bytes,
)
from prunella.storage import RetryingStore, Store, open_patiently, open_store

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)
S = TypeVar("S", bound=StageRecord)

#: In the keys that say that a stage was started, beside what it answers.
LAUNCHED = ".launched-"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def check_name(name: str) -> str:
    """`name`, if an experiment or node may be called that: it becomes part of keys, run ids and host names.

    Raises:
        ConfigError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"name {name!r}: expected 1 to 63 lower-case letters, digits and '-', starting with a letter or digit"
        )
    return name


class Ledger:
    """One experiment's view of the truth. The empty name is for sweeps of the fleet, which belong to no experiment."""

    def __init__(self, store: Store, experiment: str) -> None:
        self.store = store
        self.name = check_name(experiment) if experiment else ""
        self.prefix = f"experiments/{self.name}" if self.name else "fleet/sweeps"

    # -------------------------------------------------------------------------------- single records

    def put(self, key: str, record: Record) -> str:
        """Write a record once; returns the sha256 of its bytes. Raises KeyExists."""
        data = to_bytes(record)
        self.store.put_new(key, data)
        return hashlib.sha256(data).hexdigest()

    def find(self, kind: type[R], key: str) -> R | None:
        """The record at `key`, or None when nothing was written there."""
        try:
            return from_bytes(kind, self.store.get(key), key)
        except KeyMissing:
            return None

    def find_stage_record(self, kind: type[S], key: str) -> S | FailedRecord | None:
        """What a stage answered at `key`: its record, its failure, or None: absence is evidence."""
        try:
            return stage_record_from_bytes(kind, self.store.get(key), key)
        except KeyMissing:
            return None

    def sha256(self, key: str) -> str:
        """sha256 of the object's bytes, for references."""
        return hashlib.sha256(self.store.get(key)).hexdigest()

    def read_verified(self, key: str, sha256: str) -> bytes:
        """The object's bytes, proven to be the ones referred to. Raises DigestMismatch, KeyMissing."""
        data = self.store.get(key)
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise DigestMismatch(
                f"{key}: expected sha256 {sha256}, found {found}; it changed after it was committed: restore it"
            )
        return data

    def _dense(self, kind: type[R], pattern: str) -> list[R]:
        found: list[R] = []
        while (record := self.find(kind, pattern.format(len(found)))) is not None:
            found.append(record)
        return found

    # -------------------------------------------------------------------------------- experiment

    @property
    def experiment_key(self) -> str:
        return f"{self.prefix}/experiment.json"

    @property
    def dataset_key(self) -> str:
        """Key of the experiment's DataPrepRecord."""
        return f"{self.prefix}/dataset.json"

    def experiment(self) -> ExperimentRecord:
        """The opening record. Raises ConfigError when there is no such experiment."""
        record = self.find(ExperimentRecord, self.experiment_key)
        if record is None:
            known = ", ".join(list_experiments(self.store)) or "none"
            raise ConfigError(f"{self.store.root}: no experiment {self.name!r}; experiments here: {known}")
        return record

    def config(self) -> Config:
        """The recorded configuration, with the directives that extended it."""
        config = config_text.from_mapping(self.experiment().config, self.experiment_key)
        for directive in self.directives():
            config = config_text.replace(config, segments=directive.segments)
        return config

    def config_digests(self) -> frozenset[str]:
        """Digests of every configuration the experiment ever had: as opened, and after each extension."""
        record, directives = self.experiment(), self.directives()
        opened = config_text.from_mapping(record.config, self.experiment_key)
        extended = (config_text.replace(opened, segments=d.segments) for d in directives if d.segments is not None)
        return frozenset([record.config_digest, *(codec.digest(config) for config in extended)])

    def directives(self) -> list[Directive]:
        """Explicit changes by an operator, oldest first."""
        return self._dense(Directive, f"{self.prefix}/directives/{{:04d}}.json")

    def put_directive(self, directive: Directive) -> None:
        """Append an operator's change."""
        self.put(f"{self.prefix}/directives/{len(self.directives()):04d}.json", directive)

    def is_stop_requested(self) -> bool:
        """Whether the last word of the operators was stop."""
        words = [directive.is_stop for directive in self.directives() if directive.is_stop is not None]
        return bool(words and words[-1])

    def fault_switch(self, *, segment: int = 0, attempt: int = 0) -> "fault_module.FaultSwitch | None":
        """The faults asked for, or None: production code reads no fault unless one was asked for."""
        if not self.name:
            return None
        specs = self.experiment().faults
        if not specs:
            return None
        faults = tuple(fault_module.parse(spec) for spec in specs)
        return fault_module.FaultSwitch(open_patiently(self.store.root), self.name, faults, segment=segment, attempt=attempt)

    # -------------------------------------------------------------------------------- segments and attempts

    def segment_prefix(self, segment: int) -> str:
        return f"{self.prefix}/segments/{segment:04d}"

    def attempt_prefix(self, segment: int, attempt: int) -> str:
        return f"{self.segment_prefix(segment)}/attempts/{attempt:02d}"

    def request_key(self, segment: int, attempt: int, name: str) -> str:
        return f"{self.attempt_prefix(segment, attempt)}/requests/{name}.json"

    def record_key(self, segment: int, attempt: int, name: str) -> str:
        return f"{self.attempt_prefix(segment, attempt)}/records/{name}.json"

    def decision_key(self, segment: int, attempt: int) -> str:
        return f"{self.attempt_prefix(segment, attempt)}/decision.json"

    def vanished_key(self, output: str, start: int) -> str:
        """Where it is recorded that a start of a stage, from 0, ended without the record it was to write at `output`."""
        return f"{output.removesuffix('.json')}.vanished-{start}.json"

    def launched_key(self, output: str, start: int) -> str:
        """Where it is recorded that a stage, whose record is to be written at `output`, was started, from 0."""
        return f"{output.removesuffix('.json')}{LAUNCHED}{start}.json"

    def vanishings(self, output: str) -> list[FailedRecord]:
        """Starts of a stage that ended without a record, oldest first."""
        found: list[FailedRecord] = []
        while (record := self.find(FailedRecord, self.vanished_key(output, len(found)))) is not None:
            found.append(record)
        return found

    def resume_key(self, segment: int, attempt: int) -> str:
        return f"{self.attempt_prefix(segment, attempt)}/resume.json"

    def put_request(self, key: str, request: Request) -> None:
        """Write a request once; a second try with its own request finds it there."""
        try:
            self.put(key, request)
        except KeyExists:
            if self.find(type(request), key) is None:
                raise

    def runs(self, segment: int) -> list[SegmentOpened]:
        """DAG runs that took up the segment, oldest first."""
        return self._dense(SegmentOpened, f"{self.segment_prefix(segment)}/runs/{{:02d}}.json")

    def open_run(self, record: SegmentOpened) -> None:
        """Take up a segment. Raises KeyExists when that run index is taken."""
        self.put(f"{self.segment_prefix(record.segment)}/runs/{record.run_index:02d}.json", record)

    def close_key(self, segment: int, run_index: int) -> str:
        return f"{self.segment_prefix(segment)}/closed/{run_index:02d}.json"

    def closed(self, segment: int, run_index: int) -> SegmentClosed | None:
        """How a DAG run of the segment closed; None while it has not."""
        return self.find(SegmentClosed, self.close_key(segment, run_index))

    def accepted(self, segment: int) -> SegmentClosed | None:
        """The close that accepted the segment, if one did."""
        closes = (self.closed(segment, run.run_index) for run in self.runs(segment))
        return next((close for close in closes if close is not None and close.outcome == "accepted"), None)

    def attempts(self, segment: int) -> list[AttemptOpened]:
        """Attempts of a segment, oldest first."""
        return self._dense(AttemptOpened, f"{self.segment_prefix(segment)}/attempts/{{:02d}}/opened.json")

    def open_attempt(self, record: AttemptOpened) -> None:
        """Take token `record.attempt`. Raises KeyExists when another holds it."""
        self.put(f"{self.attempt_prefix(record.segment, record.attempt)}/opened.json", record)

    def decision(self, segment: int, attempt: int) -> DecisionRecord | None:
        """The verdict of an attempt; None while it has none."""
        return self.find(DecisionRecord, self.decision_key(segment, attempt))

    def resume_point(self, segment: int, attempt: int) -> ResumePoint | None:
        """Where the attempt started; None while that is not decided."""
        return self.find(ResumePoint, self.resume_key(segment, attempt))

    def check_token(self, *, segment: int, attempt: int, run_index: int) -> None:
        """Return quietly while `attempt` holds the token.

        Raises:
            Fenced: a newer attempt opened, or the DAG run of this one has closed.
        """
        newer = f"{self.attempt_prefix(segment, attempt + 1)}/opened.json"
        closed = self.close_key(segment, run_index)
        for key in (newer, closed):
            if self.store.exists(key):
                raise Fenced(
                    f"attempt {attempt} of segment {segment} lost its token ({key} exists); this process stops writing"
                )

    # -------------------------------------------------------------------------------- checkpoints

    @property
    def checkpoints_prefix(self) -> str:
        """Where every checkpoint of the experiment has its folder; their names sort as they were written."""
        return f"{self.prefix}/checkpoints"

    def checkpoint_prefix(self, name: str) -> str:
        return f"{self.checkpoints_prefix}/{name}"

    def manifest_key(self, name: str) -> str:
        return f"{self.checkpoint_prefix(name)}/manifest.json"

    def verdict_key(self, name: str) -> str:
        """Key of the ValidationRecord that verified or rejected the checkpoint."""
        return f"{self.checkpoint_prefix(name)}/verdict.json"

    def mark_key(self, name: str, mark: str) -> str:
        """Key of a CheckpointMark; `mark` is promoted, revoked or pruned."""
        return f"{self.checkpoint_prefix(name)}/{mark}.json"

    def candidates(self, segment: int, attempt: int) -> list[CheckpointManifest]:
        """Committed checkpoints of an attempt, oldest first. One whose manifest is damaged is none: what it says of its
        files proves nothing, and it is left as it lies."""
        found: list[CheckpointManifest] = []
        for index in itertools.count():
            key = self.manifest_key(f"{segment:04d}-{attempt:02d}-{index:04d}")
            try:
                manifest = self.find(CheckpointManifest, key)
            except DigestMismatch as error:
                logger.warning("manifest_damaged error=%s", error)
                continue
            if manifest is None:
                break
            found.append(manifest)
        return found

    def manifest(self, ref: CheckpointRef) -> CheckpointManifest:
        """The manifest a reference points to. Raises DigestMismatch, KeyMissing."""
        key = self.manifest_key(ref.name)
        return from_bytes(CheckpointManifest, self.read_verified(key, ref.manifest_sha256), key)

    def ref(self, manifest: CheckpointManifest) -> CheckpointRef:
        """The reference that pins a manifest."""
        sha256 = hashlib.sha256(to_bytes(manifest)).hexdigest()
        return CheckpointRef(name=manifest.name, step=manifest.step, manifest_sha256=sha256)

    def validation(self, name: str) -> ValidationRecord | None:
        """The verdict on a checkpoint; None for a candidate nobody judged."""
        return self.find(ValidationRecord, self.verdict_key(name))

    def mark(self, name: str, mark: str) -> CheckpointMark | None:
        """A mark on a checkpoint, if it bears it."""
        return self.find(CheckpointMark, self.mark_key(name, mark))


def node_event_key(node: str, index: int) -> str:
    """Key of a node's event number `index`, from 0."""
    return f"fleet/nodes/{check_name(node)}/{index:04d}.json"


def node_events(store: Store, node: str) -> list[NodeEvent]:
    """Everything that happened to a node, oldest first; empty for a node nobody has looked at yet."""
    found: list[NodeEvent] = []
    while True:
        key = node_event_key(node, len(found))
        try:
            found.append(from_bytes(NodeEvent, store.get(key), key))
        except KeyMissing:
            return found


def list_experiments(store: Store) -> list[str]:
    """Names of the experiments under a root, sorted (discovery)."""
    return [name for name in store.list("experiments") if store.exists(f"experiments/{name}/experiment.json")]


def open_ledger(root: str, experiment: str, *, settings: StorageConfig | None = None) -> Ledger:
    """The ledger of an experiment, behind retries, and behind its simulated outages where those were asked for.

    Args:
        settings: patience of the ledger's calls. Opening it is patient in any case.
    """
    store: Store = open_store(root)
    patient = Ledger(RetryingStore(store, StorageConfig()), experiment)
    if patient.store.exists(patient.experiment_key):
        switch = patient.fault_switch()
        if switch is not None and switch.of_kind("storage-down"):
            store = fault_module.OutageStore(store, switch)
    return Ledger(RetryingStore(store, settings or StorageConfig()), experiment)
