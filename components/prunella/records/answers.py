"""What a stage answers: one record a stage. The record carries the verdict; no record, no success."""

from dataclasses import dataclass

from prunella.records.parts import CheckpointRef, Failure, FileEntry, NodeRef, Record, Span
from prunella.records.words import Health, Stage, StopReason, Verdict


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
