"""The end of a segment: evaluate, promote, close. Closing always runs; what it writes is the segment's outcome.

Evaluation never undoes training: a checkpoint that got worse stays verified, is not promoted, and the policy says what
that means for the next segment. Publishing comes after, elsewhere.
"""

import contextlib
import logging
import os
import time

from prunella.checkpoint_history import prune
from prunella.errors import Cause, KeyExists
from prunella.incidents.diagnose import CONFIDENCE_ABSENT, from_failure
from prunella.incidents.policy import Case, decide
from prunella.ledger import Ledger
from prunella.orchestration import promoting
from prunella.orchestration.ask_stage import Asking, ask
from prunella.orchestration.claim import SegmentRun, addressed, next_segment
from prunella.orchestration.judging import accepted_records, attended
from prunella.orchestration.opening import RELAUNCHES, OnStart, StepFailed, dataset, last_vanishing, scratch_of
from prunella.orchestration.publishing import published
from prunella.orchestration.stages import NotReached, last_checkpoint
from prunella.records import (
    Action,
    AttemptOpened,
    CheckpointMark,
    CheckpointRef,
    DecisionRecord,
    Diagnosis,
    Directive,
    EvaluateRequest,
    EvaluationRecord,
    FailedRecord,
    Incident,
    Outcome,
    SegmentClosed,
    Stage,
    StageRecord,
)

logger = logging.getLogger(__name__)

EVALUATION = Stage.EVALUATION.value


def evaluate(run: SegmentRun, on_start: OnStart) -> str:
    """Have the accepted checkpoint evaluated; returns the key of the record."""
    ledger = run.ledger()
    attempt, _ = _accepted(ledger, run)
    request = EvaluateRequest(
        **addressed(run, ledger, attempt, Stage.EVALUATION, EVALUATION),
        checkpoint=last_checkpoint(ledger, run, attempt),
        dataset=dataset(ledger).fingerprint,
        baseline=promoting.baseline(ledger, run.segment),
    )
    asking = Asking(scratch=scratch_of(run, attempt), relaunches=RELAUNCHES, on_start=on_start)
    ask(ledger, ledger.request_key(run.segment, attempt.attempt, EVALUATION), request, asking)
    return request.output


def _accepted(ledger: Ledger, run: SegmentRun) -> tuple[AttemptOpened, DecisionRecord]:
    attempt = run.last_attempt(ledger)
    decision = ledger.decision(run.segment, attempt.attempt) if attempt else None
    if attempt is None or decision is None or decision.action is not Action.ACCEPT:
        raise NotReached("no attempt of this run was accepted")
    return attempt, decision


def promote(run: SegmentRun) -> str:
    """Mark the checkpoint as promoted if its evaluation shows no regression; returns the checkpoint's name."""
    ledger = run.ledger()
    attempt, _ = _accepted(ledger, run)
    record = _evaluation(ledger, run, attempt)
    checkpoint = last_checkpoint(ledger, run, attempt)
    if not isinstance(record, EvaluationRecord) or record.is_regression:
        raise NotReached(f"checkpoint {checkpoint.name} is not promoted: {_why_not(record)}")
    mark = CheckpointMark(checkpoint=checkpoint.name, reason="evaluated without regression", at_ns=time.time_ns())
    with contextlib.suppress(KeyExists):
        ledger.put(ledger.mark_key(checkpoint.name, promoting.PROMOTED), mark)
    return checkpoint.name


def _evaluation(ledger: Ledger, run: SegmentRun, attempt: AttemptOpened) -> EvaluationRecord | FailedRecord | None:
    return ledger.find_stage_record(EvaluationRecord, ledger.record_key(run.segment, attempt.attempt, EVALUATION))


def _why_not(record: StageRecord | None) -> str:
    if isinstance(record, EvaluationRecord):
        return record.regression
    return record.failure.message if record is not None and record.failure is not None else "it was not evaluated"


def close_segment(run: SegmentRun, *, failed: StepFailed | None = None, message: str = "") -> SegmentClosed:
    """Write the outcome of this DAG run of the segment, or find it written."""
    ledger = run.ledger()
    known = ledger.closed(run.segment, run.run_index)
    if known is not None:
        return known
    close = _close(ledger, run, failed, message)
    with contextlib.suppress(KeyExists):
        ledger.put(ledger.close_key(run.segment, run.run_index), close)
    if close.outcome is Outcome.ACCEPTED:
        _apply_retention(ledger)
    logger.warning("segment_closed segment=%s outcome=%s message=%s", run.segment, close.outcome, close.message)
    return close


def _apply_retention(ledger: Ledger) -> None:
    settings = ledger.config().checkpoint
    for status in prune(ledger, keep_last=settings.keep_last, keep_every=settings.keep_every, is_dry_run=False):
        logger.info("checkpoint_pruned name=%s step=%s", status.manifest.name, status.manifest.step)


def _close(ledger: Ledger, run: SegmentRun, failed: StepFailed | None, message: str) -> SegmentClosed:
    attempt = run.last_attempt(ledger)
    decision = ledger.decision(run.segment, attempt.attempt) if attempt else None
    is_accepted = attempt is not None and decision is not None and decision.action is Action.ACCEPT
    checkpoint = last_checkpoint(ledger, run, attempt) if attempt is not None and is_accepted else None
    outcome = _outcome(ledger, is_accepted)
    if attempt is None and failed is None:
        failed = StepFailed(None, message or "no attempt was opened; the log of the first task that failed says why")
    if failed is not None:
        incidents = _before_attempts(ledger, run, failed, is_asked_for=outcome is Outcome.STOPPED)
    else:
        incidents = _after_attempts(ledger, run, attempt, checkpoint)
    return SegmentClosed(
        segment=run.segment,
        run_index=run.run_index,
        run_id=run.run_id,
        outcome=outcome,
        message=str(failed) if failed is not None else _message(decision, incidents, message),
        opened_ns=_opened_ns(ledger, run),
        closed_ns=time.time_ns(),
        attempt=attempt.attempt if attempt is not None and is_accepted else None,
        checkpoint=checkpoint,
        is_promoted=checkpoint is not None and ledger.mark(checkpoint.name, promoting.PROMOTED) is not None,
        records=accepted_records(ledger, attempt) if attempt is not None and is_accepted else {},
        incidents=incidents,
    )


def _outcome(ledger: Ledger, is_accepted: bool) -> Outcome:
    if is_accepted:
        return Outcome.ACCEPTED
    return Outcome.STOPPED if ledger.is_stop_requested() else Outcome.FAILED


def _message(decision: DecisionRecord | None, incidents: tuple[Incident, ...], message: str) -> str:
    """What was decided of the last attempt, and what came of evaluating it where that went wrong."""
    decided = decision.message if decision is not None else (message or "the last attempt was not judged")
    return "; ".join([decided, *(incident.diagnosis.message for incident in incidents)])


def _opened_ns(ledger: Ledger, run: SegmentRun) -> int:
    return ledger.runs(run.segment)[run.run_index].opened_ns


def _before_attempts(ledger: Ledger, run: SegmentRun, failed: StepFailed, *, is_asked_for: bool) -> tuple[Incident, ...]:
    """What a step before the attempts failed of. A stop that a person asked for is nothing, unless a record says otherwise."""
    record, row = failed.record, "before_attempts"
    if record is not None:
        return (_incident(from_failure(record.stage, record), Action.STOP, row, record),)
    if is_asked_for:
        return ()
    found = Diagnosis(cause=failed.cause, message=str(failed), confidence=CONFIDENCE_ABSENT)
    began_ns, now_ns = _opened_ns(ledger, run), time.time_ns()
    return (Incident(diagnosis=found, action=Action.STOP, row=row, fault_ns=began_ns, detected_ns=now_ns, decided_ns=now_ns),)


def _after_attempts(
    ledger: Ledger, run: SegmentRun, attempt: AttemptOpened | None, checkpoint: CheckpointRef | None
) -> tuple[Incident, ...]:
    """The failure of the evaluation, or what it found."""
    if attempt is None or checkpoint is None:
        return ()
    key = ledger.record_key(run.segment, attempt.attempt, EVALUATION)
    record = _evaluation(ledger, run, attempt) or last_vanishing(ledger, key)
    if record is None:
        return (_not_evaluated(),)
    if isinstance(record, FailedRecord):
        return (_incident(from_failure(Stage.EVALUATION, record), Action.ACCEPT, "not_evaluated", record),)
    if isinstance(record, EvaluationRecord) and record.is_regression:
        return (_regression(ledger, record, is_unattended=run.is_unattended),)
    return ()


def _not_evaluated() -> Incident:
    """The step itself was lost before it could ask for an evaluation, or before anybody saw its end."""
    message = "the accepted checkpoint was not evaluated: nothing is recorded of it"
    found = Diagnosis(cause=Cause.VANISHED, message=message, confidence=CONFIDENCE_ABSENT)
    now_ns = time.time_ns()
    row = "not_evaluated"
    return Incident(diagnosis=found, action=Action.ACCEPT, row=row, fault_ns=now_ns, detected_ns=now_ns, decided_ns=now_ns)


def _regression(ledger: Ledger, record: EvaluationRecord, *, is_unattended: bool) -> Incident:
    """The policy's word on a checkpoint that got worse: it decides about the next segment."""
    diagnosis = Diagnosis(cause=Cause.QUALITY_REGRESSION, message=record.regression, confidence=0.9)
    case = Case(
        diagnosis=diagnosis,
        history=(),
        attempts=0,
        is_finished=False,
        is_stop_requested=False,
        is_breaker_open=False,
        has_enough_nodes=False,
        settings=ledger.config().policy,
    )
    choice = attended(decide(case), ledger.config(), is_unattended=is_unattended)
    return _incident(diagnosis, choice.action, choice.row, record)


def _incident(diagnosis: Diagnosis, action: Action, row: str, record: StageRecord) -> Incident:
    return Incident(
        diagnosis=diagnosis,
        action=action,
        row=row,
        fault_ns=record.started_ns,
        detected_ns=record.ended_ns,
        decided_ns=time.time_ns(),
    )


# ------------------------------------------------------------------------------------------------ afterwards


def is_waiting_for_a_person(close: SegmentClosed) -> bool:
    """Whether the policy wants a person's word before the next segment."""
    return any(incident.action in (Action.ASK, Action.STOP) for incident in close.incidents)


def is_on_hold(ledger: Ledger, close: SegmentClosed) -> bool:
    """Whether the segment was accepted, and the next one waits for a person all the same: no red task tells of that."""
    is_accepted = close.outcome is Outcome.ACCEPTED
    return is_accepted and is_waiting_for_a_person(close) and next_segment(ledger) is not None


def may_continue(ledger: Ledger, close: SegmentClosed) -> bool:
    """Whether the next DAG run of the experiment may start by itself."""
    if ledger.is_stop_requested() or next_segment(ledger) is None:
        return False
    if close.outcome is Outcome.ACCEPTED:
        return not is_waiting_for_a_person(close)
    return is_reopenable(ledger, close)


def is_reopenable(ledger: Ledger, close: SegmentClosed) -> bool:
    """Whether a failed run ended only because its ladder was exhausted: its last decision was to recover."""
    attempts = [a for a in ledger.attempts(close.segment) if a.run_index == close.run_index]
    if not attempts:
        return False
    decision = ledger.decision(close.segment, attempts[-1].attempt)
    return decision is None or decision.action not in (Action.STOP, Action.ASK)


def lacks_links(ledger: Ledger) -> bool:
    """Whether nothing is published yet that `links` could lead to. Airflow keeps for good what they are when the task ends."""
    return bool(os.environ.get("PRUNELLA_MLFLOW_UI")) and published(ledger) is None


def links(run: SegmentRun) -> tuple[str, str]:
    """Addresses of the run and of the report in MLflow's pages; empty where PRUNELLA_MLFLOW_UI names no server."""
    address, found = os.environ.get("PRUNELLA_MLFLOW_UI"), published(run.ledger())
    if not address or found is None:
        return "", ""
    page = found.page(address)
    return page, f"{page}/artifacts/report.html"


def request_stop(ledger: Ledger, reason: str) -> None:
    """Record an operator's stop; a running attempt finishes its step and saves."""
    ledger.put_directive(Directive(at_ns=time.time_ns(), reason=reason, is_stop=True))


def request_resume(ledger: Ledger, reason: str) -> None:
    """Take an operator's stop back."""
    ledger.put_directive(Directive(at_ns=time.time_ns(), reason=reason, is_stop=False))


def extend(ledger: Ledger, segments: int, reason: str) -> None:
    """Record a new total number of segments; the learning-rate schedule spans it from then on."""
    ledger.put_directive(Directive(at_ns=time.time_ns(), reason=reason, segments=segments))
