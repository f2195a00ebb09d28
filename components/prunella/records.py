"""What passes between stages and what the ledger holds. Read this file first.

A request tells a stage what to do, a record tells what came of it; both are immutable. Each carries its schema
`<kind>/<version>`; older versions are migrated by pure functions in `_MIGRATIONS`, newer ones are refused with advice.
On disk a record is two lines: the sha256 of the second, then canonical JSON, so that damage is found before any parser
runs, and `jq` still reads the file. `None` means "does not apply", never "failed".

Units: `_ns` integer nanoseconds on the wall clock of the attempt's machine, `_nats` natural-log cross-entropy.
Segments, attempts and ranks count from 0, optimizer steps from 1 over the whole experiment.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, TypeVar

from prunella.codec import canonical_json, decode, encode
from prunella.errors import Cause, ConfigError, DigestMismatch, SchemaTooNew

Json = str | int | float | bool | None

# ------------------------------------------------------------------------------------------------ words


class Stage(StrEnum):
    """The work that runs as `prunella stage NAME`, one process each."""

    DATA_PREP = "data_prep"
    GATE_NODE = "gate_node"
    GATE_FABRIC = "gate_fabric"
    TRAINING_SEGMENT = "training_segment"
    CHECKPOINT_VALIDATION = "checkpoint_validation"
    EVALUATION = "evaluation"


class Verdict(StrEnum):
    """What a stage says of its subject. `unknown` is never healthy."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNKNOWN = "unknown"


class Health(StrEnum):
    """What one check says of one node."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


class Action(StrEnum):
    """What the policy can choose; each is an edge of the graph."""

    ACCEPT = "accept"
    RETRY_SAME_NODES = "retry_same_nodes"
    REPLACE_NODE = "replace_node"
    ROLL_BACK = "roll_back"
    ROLL_BACK_AND_SKIP = "roll_back_and_skip"
    ASK = "ask"
    STOP = "stop"


class StopReason(StrEnum):
    """Why a training segment ended."""

    END = "end"
    SIGNAL = "signal"
    WALL_CLOCK = "wall_clock"
    FAILURE = "failure"


class Outcome(StrEnum):
    """How a segment's DAG run closed."""

    ACCEPTED = "accepted"
    FAILED = "failed"
    STOPPED = "stopped"


class NodeState(StrEnum):
    """A node's place in its life cycle (FIELD 2 of the LTP paper, with the gaps filled)."""

    NEW = "new"
    VALIDATING = "validating"
    AVAILABLE = "available"
    CORDONED = "cordoned"
    RETURNED = "returned"


class Part(StrEnum):
    """Where a second of elapsed time went. The parts add up to elapsed time exactly."""

    PRODUCTIVE = "productive"
    INITIALISATION = "initialisation"
    DATA_PREPARATION = "data_preparation"
    DATA_WAIT = "data_wait"
    CHECKPOINT_STALL = "checkpoint_stall"
    GATE = "gate"
    VALIDATION = "validation"
    LOST_PROGRESS = "lost_progress"
    DETECTION = "detection"
    DECISION = "decision"
    TEARDOWN = "teardown"
    ACQUISITION = "acquisition"
    LOAD = "load"
    FIRST_STEP = "first_step"
    EVALUATION = "evaluation"
    ORCHESTRATION = "orchestration"
    PAUSED = "paused"
    UNKNOWN = "unknown"


# ------------------------------------------------------------------------------------------------ parts of records


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A stretch of time with a name. `end_ns` >= `start_ns`."""

    part: Part
    start_ns: int
    end_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """What a stage knows of its own failure. Describes; never decides."""

    cause: Cause
    message: str
    node: str | None = None
    rank: int | None = None
    step: int | None = None
    evidence: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeRef:
    """A node as a request names it: the physical identity, and how many devices it brings."""

    name: str
    devices: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Batches left out of the data order, first to last, both included. Batches count from 0."""

    first: int
    last: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of a committed set."""

    key: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointRef:
    """A checkpoint by name. `name` is `<segment>-<attempt>-<index>`; the manifest's sha256 pins its content."""

    name: str
    step: int
    manifest_sha256: str


# ------------------------------------------------------------------------------------------------ base of all records


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Base of everything the ledger stores."""

    KIND: ClassVar[str] = ""
    VERSION: ClassVar[int] = 1


# ------------------------------------------------------------------------------------------------ requests


@dataclass(frozen=True, kw_only=True, slots=True)
class Request(Record):
    """What every stage is told. `output` is the key its record will be written to; `inputs` maps keys to sha256."""

    stage: Stage
    root: str
    experiment: str
    config_digest: str
    output: str
    segment: int = 0
    attempt: int = 0
    run_index: int = 0
    nodes: tuple[NodeRef, ...] = ()
    inputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataPrepRequest(Request):
    """Prepare the data set of the experiment. `is_repair` verifies every byte of it, not only sizes."""

    KIND = "data_prep_request"
    is_repair: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class GateNodeRequest(Request):
    """Check one node, `node`, alone."""

    KIND = "gate_node_request"
    node: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GateFabricRequest(Request):
    """Check the links between nodes. `nodes` are the nodes that passed alone, active first; `wanted` of them are needed."""

    KIND = "gate_fabric_request"
    wanted: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRequest(Request):
    """Train optimizer steps `first_step` to `last_step` (both included) on `nodes`, from `resume` or from initialisation."""

    KIND = "train_request"
    first_step: int
    last_step: int
    total_steps: int
    dataset: str
    resume: CheckpointRef | None = None
    skipped: tuple[Window, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidateRequest(Request):
    """Validate `candidate`; `previous` is the newest verified checkpoint before it."""

    KIND = "validate_request"
    candidate: CheckpointRef
    dataset: str
    previous: CheckpointRef | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateRequest(Request):
    """Evaluate the verified `checkpoint`; `baseline` is the key of the evaluation record it must not fall behind."""

    KIND = "evaluate_request"
    checkpoint: CheckpointRef
    dataset: str
    baseline: str | None = None


# ------------------------------------------------------------------------------------------------ stage records


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRecord(Record):
    """What every stage answers. `failure` is set exactly when the verdict is not `accepted`."""

    stage: Stage
    verdict: Verdict
    started_ns: int
    ended_ns: int
    failure: Failure | None = None
    spans: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        if (self.failure is None) != (self.verdict is Verdict.ACCEPTED):
            raise ValueError(f"verdict {self.verdict} does not go with failure {self.failure}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedRecord(StageRecord):
    """A stage that raised. Stored where its own record would have been."""

    KIND = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataPrepRecord(StageRecord):
    """The data set that training reads: its fingerprint (the folder under `datasets/`) and the manifest's sha256."""

    KIND = "data_prep"
    fingerprint: str
    manifest_sha256: str
    train_tokens: int
    heldout_tokens: int
    documents: int
    quarantined: int
    repaired_shards: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """One measurement on one node. `reference` says what a healthy value looks like, in `unit`."""

    name: str
    node: str
    health: Health
    value: float
    unit: str
    reference: str
    duration_ms: float
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateNodeRecord(StageRecord):
    """What one node's own checks say of it."""

    KIND = "gate_node"
    node: str
    health: Health
    checks: tuple[CheckResult, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class GateFabricRecord(StageRecord):
    """The nodes admitted to training, and what the links between them showed."""

    KIND = "gate_fabric"
    admitted: tuple[NodeRef, ...]
    health: dict[str, Health]
    checks: tuple[CheckResult, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankExit:
    """How one rank ended. `signal` is set when it was killed by one; `failure` comes from its own exit record."""

    rank: int
    node: str
    step: int
    phase: str
    heartbeat_ns: int
    is_recorded: bool
    exit_code: int | None = None
    signal: int | None = None
    failure: Failure | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outage:
    """Time in which the object store did not answer, and training waited for it."""

    start_ns: int
    end_ns: int
    step: int
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRecord(StageRecord):
    """What a training segment did. `metrics` names the chunks of step records beyond those named by candidates."""

    KIND = "train"
    stopped_by: StopReason
    first_step: int
    last_step: int
    candidates: int
    world_size: int
    exits: tuple[RankExit, ...]
    metrics: tuple[FileEntry, ...] = ()
    outages: tuple[Outage, ...] = ()
    warnings: tuple[str, ...] = ()
    fault_ns: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationCheck:
    """One thing a checkpoint must satisfy. Value and reference are in words, with units."""

    name: str
    is_passed: bool
    value: str
    reference: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationRecord(StageRecord):
    """The verdict on one candidate. `digest` (sha256 of its logical content) is None when it could not be read.

    `parameter_digest` covers the model's tensors alone, without counters: the next checkpoint must differ in it (R2).
    """

    KIND = "validation"
    checkpoint: CheckpointRef
    digest: str | None
    checks: tuple[ValidationCheck, ...]
    parameter_digest: str | None = None
    parameter_norm: float | None = None
    probe_loss_nats: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScore:
    """Accuracy on one task, with what makes it repeatable (FIELD 6, R16). `ci95` is low, high."""

    task: str
    version: str
    acc: float
    n: int
    ci95: tuple[float, ...]
    chance: float
    few_shot: int
    batch_size: int
    seed: int
    dtype: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRecord(StageRecord):
    """How good a checkpoint is. An accepted evaluation may still say `is_regression`."""

    KIND = "evaluation"
    checkpoint: CheckpointRef
    digest: str
    heldout_loss_nats: float
    bits_per_byte: float
    heldout_tokens: int
    scores: tuple[TaskScore, ...]
    is_regression: bool
    regression: str = ""
    sample: str = ""


#: Which record each stage answers with.
RECORD_OF: dict[Stage, type[StageRecord]] = {
    Stage.DATA_PREP: DataPrepRecord,
    Stage.GATE_NODE: GateNodeRecord,
    Stage.GATE_FABRIC: GateFabricRecord,
    Stage.TRAINING_SEGMENT: TrainRecord,
    Stage.CHECKPOINT_VALIDATION: ValidationRecord,
    Stage.EVALUATION: EvaluationRecord,
}

# ------------------------------------------------------------------------------------------------ step records (metrics chunks)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One executed optimizer step. The four `_ns` parts add up to `end_ns - start_ns` exactly."""

    step: int
    start_ns: int
    end_ns: int
    data_ns: int
    compute_ns: int
    communication_ns: int
    checkpoint_ns: int
    loss_nats: float
    grad_norm: float
    learning_rate: float
    tokens: int
    tokens_per_s: float
    mfu: float | None
    load_balance_loss: float
    router_z_loss: float
    tokens_per_expert: tuple[tuple[int, ...], ...]
    batch: int


# ------------------------------------------------------------------------------------------------ checkpoint manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointManifest(Record):
    """Written last: a checkpoint exists when this does. `metrics` are the step records since the candidate before."""

    KIND = "checkpoint"
    VERSION = 1
    name: str
    experiment: str
    segment: int
    attempt: int
    step: int
    world_size: int
    config_digest: str
    dataset: str
    files: tuple[FileEntry, ...]
    metrics: tuple[FileEntry, ...]
    probe_loss_nats: float
    torch_version: str
    written_ns: int
    skipped: tuple[Window, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointMark(Record):
    """A statement about a checkpoint written after its verdict: promoted, revoked or pruned. One key each."""

    KIND = "checkpoint_mark"
    checkpoint: str
    reason: str
    at_ns: int


# ------------------------------------------------------------------------------------------------ experiment, segment, attempt


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentRecord(Record):
    """The opening of an experiment: everything it depends on."""

    KIND = "experiment"
    name: str
    opened_ns: int
    config: dict[str, Any]
    config_digest: str
    faults: tuple[str, ...]
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Directive(Record):
    """An operator's explicit change, dense under `directives/`: stop, resume, or a new number of segments."""

    KIND = "directive"
    at_ns: int
    reason: str
    segments: int | None = None
    is_stop: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptOpened(Record):
    """Whoever writes this holds token `attempt`. `run_id` and `rung` let a second try find its own opening."""

    KIND = "attempt_opened"
    segment: int
    attempt: int
    run_index: int
    run_id: str
    rung: int
    opened_ns: int
    nodes: tuple[NodeRef, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumePoint(Record):
    """Where an attempt starts: the newest checkpoint that passed. `rejected` were tried before it."""

    KIND = "resume_point"
    step: int
    checkpoint: CheckpointRef | None
    rejected: tuple[CheckpointRef, ...]
    skipped: tuple[Window, ...]
    decided_ns: int
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """What went wrong, as far as the evidence goes. `confidence` is in [0, 1]."""

    cause: Cause
    message: str
    confidence: float
    node: str | None = None
    rank: int | None = None
    step: int | None = None
    evidence: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Incident:
    """One thing that went wrong and what was done about it.

    `detected_ns` is when the launcher or stage saw it, `fault_ns` the last moment everything was known to be well.
    `lost_steps` counts optimizer steps that were executed and must be executed again.
    """

    diagnosis: Diagnosis
    action: Action
    row: str
    fault_ns: int
    detected_ns: int
    decided_ns: int
    lost_steps: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionRecord(Record):
    """The verdict of an attempt: one decision, and every incident the attempt met."""

    KIND = "decision"
    segment: int
    attempt: int
    action: Action
    row: str
    message: str
    incidents: tuple[Incident, ...]
    started_ns: int
    decided_ns: int
    skip: tuple[Window, ...] = ()
    avoid_nodes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentClosed(Record):
    """The outcome of one DAG run of a segment. `records` maps every accepted key to its sha256; anything else is noise."""

    KIND = "segment_closed"
    segment: int
    run_index: int
    run_id: str
    outcome: Outcome
    message: str
    opened_ns: int
    closed_ns: int
    attempt: int | None = None
    checkpoint: CheckpointRef | None = None
    is_promoted: bool = False
    records: dict[str, str] = field(default_factory=dict)
    incidents: tuple[Incident, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentOpened(Record):
    """A DAG run took up a segment, dense under `segments/<n>/runs/`."""

    KIND = "segment_opened"
    segment: int
    run_index: int
    run_id: str
    opened_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeEvent(Record):
    """One transition of a node, dense under `fleet/nodes/<name>/`. `owner` is who moved it: gate, sweep, operator, policy."""

    KIND = "node_event"
    node: str
    state: NodeState
    owner: str
    reason: str
    at_ns: int
    evidence: dict[str, Json] = field(default_factory=dict)
    is_override: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultFired(Record):
    """A requested fault is about to act. Written before it does, so that it acts once an experiment."""

    KIND = "fault_fired"
    spec: str
    at_ns: int
    segment: int
    attempt: int
    step: int | None = None


# ------------------------------------------------------------------------------------------------ bytes

R = TypeVar("R", bound=Record)
S = TypeVar("S", bound=StageRecord)

_SEAL = re.compile(rb'\{"sha256":"([0-9a-f]{64})"\}\n')
_SEAL_BYTES = len(b'{"sha256":""}\n') + 64

#: (kind, version) -> function from that version's JSON object to the next version's.
_MIGRATIONS: dict[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]] = {}


def seal(body: bytes) -> bytes:
    """`body` with a line in front that carries its sha256."""
    return b'{"sha256":"%s"}\n' % hashlib.sha256(body).hexdigest().encode() + body


def unseal(data: bytes, where: str) -> bytes:
    """The body of a sealed record.

    Raises:
        DigestMismatch: the seal is missing or the body is not the one that was written.
    """
    match = _SEAL.match(data)
    body = data[_SEAL_BYTES:]
    if match is None or hashlib.sha256(body).hexdigest().encode() != match.group(1):
        raise DigestMismatch(
            f"{where}: the record is damaged (its bytes do not have the sha256 in its first line); "
            "it was changed outside Prunella: restore it from a copy of the root"
        )
    return body


def to_bytes(record: Record) -> bytes:
    """The sealed bytes of a record."""
    kind = type(record)
    return seal(canonical_json({"schema": f"{kind.KIND}/{kind.VERSION}", **encode(record)}) + b"\n")


def from_bytes(expected: type[R], data: bytes, where: str) -> R:
    """Read a record of kind `expected`.

    Raises:
        DigestMismatch: the bytes are damaged.
        SchemaTooNew: a newer Prunella wrote it.
        ConfigError: it is a record of another kind, or malformed.
    """
    fields = json.loads(unseal(data, where))
    kind, _, version = str(fields.pop("schema", "")).partition("/")
    if kind != expected.KIND:
        raise ConfigError(f"{where}: expected a {expected.KIND!r} record, found {kind!r}")
    if int(version) > expected.VERSION:
        raise SchemaTooNew(
            f"{where}: schema {kind}/{version} is newer than {kind}/{expected.VERSION}, which this Prunella writes; upgrade it"
        )
    for old in range(int(version), expected.VERSION):
        fields = _MIGRATIONS[kind, old](fields)
    return decode(expected, fields, where)


def stage_record_from_bytes(expected: type[S], data: bytes, where: str) -> S | FailedRecord:
    """Like `from_bytes`, for a key that holds either the stage's own record or its `FailedRecord`."""
    kind = str(json.loads(unseal(data, where)).get("schema", "")).partition("/")[0]
    return from_bytes(FailedRecord, data, where) if kind == FailedRecord.KIND else from_bytes(expected, data, where)
