"""The middle of an attempt: gate each node, gate the fabric, train, validate. Each step asks one stage.

A step whose predecessor was not accepted is skipped: it raises `NotReached`, and the orchestrator shows it as skipped.
"""

import logging

from prunella.errors import PrunellaError
from prunella.fleet.gate_results import apply_gate_fabric, apply_gate_node
from prunella.fleet.lifecycle import Fleet
from prunella.launch import door
from prunella.launch.handle import Handle
from prunella.ledger import Ledger
from prunella.orchestration.ask_stage import Asking, ask
from prunella.orchestration.claim import SegmentRun, addressed
from prunella.orchestration.opening import RELAUNCHES, OnStart, dataset, scratch_of, validate
from prunella.records import (
    AttemptOpened,
    CheckpointRef,
    FailedRecord,
    GateFabricRecord,
    GateFabricRequest,
    GateNodeRecord,
    GateNodeRequest,
    NodeRef,
    Stage,
    TrainRecord,
    TrainRequest,
    Verdict,
)

logger = logging.getLogger(__name__)


class NotReached(PrunellaError):
    """The step before this one was not accepted, so this one has nothing to do."""


def gate_node(run: SegmentRun, key: str, on_start: OnStart) -> str:
    """Gate one node and move it in the fleet's ledger; returns the key of its record."""
    ledger = run.ledger()
    request = ledger.find(GateNodeRequest, key)
    if request is None:
        raise NotReached(f"{key}: no node was asked to be gated")
    attempt = ledger.attempts(run.segment)[request.attempt]
    asking = Asking(
        scratch=scratch_of(run, attempt),
        node=request.node,
        relaunches=RELAUNCHES,
        timeout_s=ledger.config().gate.node_timeout_s,
        on_start=on_start,
    )
    answer = ask(ledger, key, request, asking)
    record = answer if isinstance(answer, GateNodeRecord | FailedRecord) else None
    apply_gate_node(Fleet(ledger.store), request.node, record, key=request.output)
    return request.output


def gate_fabric(run: SegmentRun, rung: int, on_start: OnStart) -> str:
    """Gate the links between the nodes that passed alone, active ones first; returns the key of the record."""
    ledger = run.ledger()
    config = ledger.config()
    attempt = _opened(ledger, run, rung)
    if ledger.resume_point(run.segment, attempt.attempt) is None:
        raise NotReached(f"rung {rung} has nothing to resume from: it did not finish opening, so no node was gated")
    request = GateFabricRequest(
        **addressed(run, ledger, attempt, Stage.GATE_FABRIC, Stage.GATE_FABRIC),
        nodes=_survivors(ledger, run, attempt),
        wanted=config.nodes,
    )
    asking = Asking(scratch=scratch_of(run, attempt), relaunches=RELAUNCHES, on_start=on_start)
    record = ask(ledger, ledger.request_key(run.segment, attempt.attempt, Stage.GATE_FABRIC), request, asking)
    if isinstance(record, GateFabricRecord):
        apply_gate_fabric(Fleet(ledger.store), record, key=request.output)
    return request.output


def _survivors(ledger: Ledger, run: SegmentRun, attempt: AttemptOpened) -> tuple[NodeRef, ...]:
    def has_passed(node: NodeRef) -> bool:
        key = ledger.record_key(run.segment, attempt.attempt, f"gate_node-{node.name}")
        record = ledger.find_stage_record(GateNodeRecord, key)
        return record is not None and record.verdict is Verdict.ACCEPTED

    return tuple(node for node in attempt.nodes if has_passed(node))


def train_segment(run: SegmentRun, rung: int, on_start: OnStart) -> str:
    """Train what is left of the segment on the admitted nodes; returns the key of the record."""
    ledger = run.ledger()
    config = ledger.config()
    attempt = _opened(ledger, run, rung)
    fabric = ledger.find_stage_record(GateFabricRecord, ledger.record_key(run.segment, attempt.attempt, Stage.GATE_FABRIC))
    point = ledger.resume_point(run.segment, attempt.attempt)
    if not isinstance(fabric, GateFabricRecord) or fabric.verdict is not Verdict.ACCEPTED or point is None:
        raise NotReached("the fabric was not admitted; nothing was trained")
    request = TrainRequest(
        **addressed(run, ledger, attempt, Stage.TRAINING_SEGMENT, Stage.TRAINING_SEGMENT),
        nodes=fabric.admitted,
        first_step=point.step + 1,
        last_step=(run.segment + 1) * config.steps_per_segment,
        total_steps=config.total_steps,
        dataset=dataset(ledger).fingerprint,
        resume=point.checkpoint,
        skipped=point.skipped,
    )
    asking = Asking(scratch=scratch_of(run, attempt), on_start=on_start, on_poll=_StopWatch(ledger))
    ask(ledger, ledger.request_key(run.segment, attempt.attempt, Stage.TRAINING_SEGMENT), request, asking)
    return request.output


class _StopWatch:
    """Passes an operator's `stop` on to the training process, once: it finishes its step and saves."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._is_told = False

    def __call__(self, handle: Handle) -> None:
        if not self._is_told and self._ledger.is_stop_requested():
            self._is_told = True
            door.ask_to_stop(handle)


def validate_checkpoint(run: SegmentRun, rung: int, on_start: OnStart) -> str:
    """Have the attempt's last candidate judged; returns the key of the record."""
    ledger = run.ledger()
    attempt = _opened(ledger, run, rung)
    train = ledger.find_stage_record(TrainRecord, ledger.record_key(run.segment, attempt.attempt, Stage.TRAINING_SEGMENT))
    if not isinstance(train, TrainRecord) or train.verdict is not Verdict.ACCEPTED:
        raise NotReached("the attempt trained nothing that could be validated")
    name = Stage.CHECKPOINT_VALIDATION.value
    validate(ledger, run, attempt, last_checkpoint(ledger, run, attempt), name=name, on_start=on_start)
    return ledger.record_key(run.segment, attempt.attempt, name)


def last_checkpoint(ledger: Ledger, run: SegmentRun, attempt: AttemptOpened) -> CheckpointRef:
    """The newest candidate of an attempt; where nothing was left to train, the one it resumed from."""
    candidates = ledger.candidates(run.segment, attempt.attempt)
    if candidates:
        return ledger.ref(candidates[-1])
    point = ledger.resume_point(run.segment, attempt.attempt)
    if point is None or point.checkpoint is None:
        raise NotReached("the attempt has no checkpoint")
    return point.checkpoint


def _opened(ledger: Ledger, run: SegmentRun, rung: int) -> AttemptOpened:
    attempt = run.attempt(ledger, rung)
    if attempt is None:
        raise NotReached(f"rung {rung} was not opened")
    return attempt
