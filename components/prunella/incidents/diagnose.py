"""From the evidence an attempt left to one diagnosis: cause, culprit, confidence. Describes, never decides.

It trusts records first, absence second: a stage that was asked (its request exists) and left no record has vanished. The
stages run in order, so the first one that did not succeed is where the attempt went wrong; what came after was skipped.
"""

from dataclasses import dataclass

from prunella.errors import Cause
from prunella.records import (
    Diagnosis,
    FailedRecord,
    Failure,
    GateFabricRecord,
    GateNodeRecord,
    Stage,
    StageRecord,
    StopReason,
    TrainRecord,
    ValidationRecord,
    Verdict,
)

#: How sure a diagnosis is, by the kind of its evidence. Source: own ordering 2026-11, not measured: a stage's word about
#: itself, then the launcher's observation of another process, then mere absence.
CONFIDENCE_RECORDED = 0.9
CONFIDENCE_OBSERVED = 0.7
CONFIDENCE_ABSENT = 0.5

_OBSERVED = (Cause.HANG, Cause.PROCESS_CRASH)


@dataclass(frozen=True, kw_only=True, slots=True)
class OlderCheckpoint:
    """A checkpoint of an earlier attempt, and what validation said when this one wanted to resume from it."""

    step: int
    record: ValidationRecord | FailedRecord

    @property
    def is_rejected(self) -> bool:
        return isinstance(self.record, ValidationRecord) and self.record.verdict is not Verdict.ACCEPTED


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What the ledger holds of one attempt. A stage never asked is None and not in `asked`.

    `opening` are the checkpoints it had judged to find its resume point, newest first.
    """

    asked: frozenset[Stage]
    gate: dict[str, GateNodeRecord | FailedRecord | None]
    fabric: GateFabricRecord | FailedRecord | None = None
    train: TrainRecord | FailedRecord | None = None
    validation: ValidationRecord | FailedRecord | None = None
    opening: tuple[OlderCheckpoint, ...] = ()


def diagnose(evidence: Evidence) -> Diagnosis | None:
    """What went wrong with the attempt; None when every stage accepted."""
    if not evidence.asked:
        for older in evidence.opening:
            if isinstance(older.record, FailedRecord):
                return from_failure(Stage.CHECKPOINT_VALIDATION, older.record)
        return _vanished("the attempt was opened, but nothing of it ran: its orchestrator died or was stopped")
    in_order: tuple[tuple[Stage, StageRecord | None], ...] = (
        (Stage.GATE_FABRIC, evidence.fabric),
        (Stage.TRAINING_SEGMENT, evidence.train),
        (Stage.CHECKPOINT_VALIDATION, evidence.validation),
    )
    for stage, record in in_order:
        if stage not in evidence.asked:
            if stage is Stage.CHECKPOINT_VALIDATION and _was_stopped_at_start(evidence.train):
                return None
            return _vanished(f"the attempt ended before {stage}: its orchestrator died or was stopped")
        if record is None:
            return _vanished(f"{stage} was started and left no record")
        if record.verdict is not Verdict.ACCEPTED:
            return from_failure(stage, record)
    return None


def _was_stopped_at_start(train: TrainRecord | FailedRecord | None) -> bool:
    """Whether training was stopped before its first step had finished: then it left nothing that could be validated."""
    return isinstance(train, TrainRecord) and train.stopped_by is not StopReason.END and train.last_step < train.first_step


def from_failure(stage: Stage, record: StageRecord) -> Diagnosis:
    """The diagnosis a stage's own account of its failure amounts to."""
    failure: Failure | None = record.failure
    assert failure is not None, "a record that is not accepted carries its failure"
    return Diagnosis(
        cause=failure.cause,
        message=failure.message,
        confidence=CONFIDENCE_OBSERVED if failure.cause in _OBSERVED else CONFIDENCE_RECORDED,
        node=failure.node,
        rank=failure.rank,
        step=failure.step,
        evidence={"stage": stage.value, "verdict": record.verdict.value, **failure.evidence},
    )


def replaced_nodes(evidence: Evidence) -> tuple[Diagnosis, ...]:
    """Nodes that did not pass their own gate, one diagnosis each: they were replaced without burning the attempt.

    Silence counts once the gates were over, which asking for the fabric shows; before, a node was perhaps never asked.
    """
    are_over = Stage.GATE_FABRIC in evidence.asked
    failed = {node: record for node, record in evidence.gate.items() if not _is_healthy(record)}
    return tuple(_node_diagnosis(node, record) for node, record in failed.items() if record is not None or are_over)


def _is_healthy(record: GateNodeRecord | FailedRecord | None) -> bool:
    return record is not None and record.verdict is Verdict.ACCEPTED


def _node_diagnosis(node: str, record: GateNodeRecord | FailedRecord | None) -> Diagnosis:
    if record is None:
        return Diagnosis(
            cause=Cause.VANISHED,
            message=f"the gate of {node} left no record; unknown health is not healthy",
            confidence=CONFIDENCE_ABSENT,
            node=node,
        )
    diagnosis = from_failure(Stage.GATE_NODE, record)
    return diagnosis if diagnosis.node else _with_node(diagnosis, node)


def _with_node(diagnosis: Diagnosis, node: str) -> Diagnosis:
    return Diagnosis(
        cause=diagnosis.cause,
        message=diagnosis.message,
        confidence=diagnosis.confidence,
        node=node,
        evidence=diagnosis.evidence,
    )


def _vanished(message: str) -> Diagnosis:
    return Diagnosis(cause=Cause.VANISHED, message=message, confidence=CONFIDENCE_ABSENT)
