"""The verdict of an attempt: fold its records, diagnose, ask the policy, write one decision, carry it out.

Runs even when everything before it failed. An attempt that a dead orchestrator left without a verdict is settled by the
next run of the segment. What the policy chose is done here and nowhere else: nodes are cordoned, checkpoints revoked.
"""

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from prunella.checkpoint_history import is_rejected, recent_checkpoints
from prunella.config import Config, Unattended
from prunella.errors import Cause, Fenced, KeyExists
from prunella.fleet.lifecycle import Fleet, Owner
from prunella.fleet.roster import candidates_for_gate, load_fleet
from prunella.incidents.diagnose import Evidence, OlderCheckpoint, diagnose, from_failure, replaced_nodes
from prunella.incidents.policy import Case, Choice, PastFailure, decide
from prunella.ledger import Ledger
from prunella.orchestration.claim import SegmentRun
from prunella.records import (
    RECORD_OF,
    Action,
    AttemptOpened,
    CheckpointMark,
    DecisionRecord,
    Diagnosis,
    FailedRecord,
    GateFabricRecord,
    GateNodeRecord,
    Incident,
    NodeRef,
    Part,
    Stage,
    TrainRecord,
    ValidationRecord,
    Verdict,
    Window,
)
from prunella.scratch import attempt_scratch
from prunella.training_segment.step_log import read_last

logger = logging.getLogger(__name__)

_RUNG_STAGES = (Stage.GATE_FABRIC, Stage.TRAINING_SEGMENT, Stage.CHECKPOINT_VALIDATION)


def verdict(run: SegmentRun, rung: int) -> Action | None:
    """Judge the attempt of a rung; None when the rung was never opened."""
    ledger = run.ledger()
    attempt = run.attempt(ledger, rung)
    return None if attempt is None else judge(ledger, run, attempt).action


def settle(ledger: Ledger, run: SegmentRun) -> None:
    """Judge attempts of earlier runs that nobody judged. The newest is judged in any case: what was decided about it is
    perhaps not carried out."""
    attempts = ledger.attempts(run.segment)
    for attempt in attempts:
        is_open = attempt is attempts[-1] or ledger.decision(run.segment, attempt.attempt) is None
        if is_open and attempt.run_index < run.run_index:
            judge(ledger, run, attempt)


def judge(ledger: Ledger, run: SegmentRun, attempt: AttemptOpened) -> DecisionRecord:
    """Write the attempt's one decision, or find it written, and carry it out."""
    known = ledger.decision(attempt.segment, attempt.attempt)
    if known is None:
        known = _decide(ledger, run, attempt)
        with contextlib.suppress(KeyExists):
            ledger.put(ledger.decision_key(attempt.segment, attempt.attempt), known)
    _carry_out(ledger, attempt, known)
    logger.warning(
        "decision_made segment=%s attempt=%s action=%s row=%s", attempt.segment, attempt.attempt, known.action, known.row
    )
    return known


# ------------------------------------------------------------------------------------------------ folding


def gather(ledger: Ledger, attempt: AttemptOpened) -> Evidence:
    """What the ledger holds of an attempt."""

    def key(name: str) -> str:
        return ledger.record_key(attempt.segment, attempt.attempt, name)

    asked = [s for s in _RUNG_STAGES if ledger.store.exists(ledger.request_key(attempt.segment, attempt.attempt, s))]
    return Evidence(
        asked=frozenset(asked),
        gate={n.name: ledger.find_stage_record(GateNodeRecord, key(f"gate_node-{n.name}")) for n in attempt.nodes},
        fabric=ledger.find_stage_record(GateFabricRecord, key(Stage.GATE_FABRIC)),
        train=ledger.find_stage_record(TrainRecord, key(Stage.TRAINING_SEGMENT)),
        validation=ledger.find_stage_record(ValidationRecord, key(Stage.CHECKPOINT_VALIDATION)),
        opening=_judged_at_opening(ledger, attempt),
    )


def validation_at_opening(checkpoint: str) -> str:
    """Under what name an attempt has a checkpoint judged that it may resume from, beside that of its own last one."""
    return f"{Stage.CHECKPOINT_VALIDATION}-{checkpoint}"


def _judged_at_opening(ledger: Ledger, attempt: AttemptOpened) -> tuple[OlderCheckpoint, ...]:
    """Checkpoints of earlier attempts that this one had judged when it looked for its resume point, newest first."""
    found = []
    for manifest in recent_checkpoints(ledger, attempt.segment):
        if (manifest.segment, manifest.attempt) >= (attempt.segment, attempt.attempt):
            continue
        key = ledger.record_key(attempt.segment, attempt.attempt, validation_at_opening(manifest.name))
        record = ledger.find_stage_record(ValidationRecord, key)
        if record is not None:
            found.append(OlderCheckpoint(step=manifest.step, record=record))
        if not is_rejected(ledger, manifest.name):
            break  # it was resumed from, or could not be judged: nobody looked further
    return tuple(found)


def past_failures(ledger: Ledger, attempt: AttemptOpened) -> tuple[PastFailure, ...]:
    """Failed attempts of the segment before this one, and whether training progressed since each."""
    best = _durable_step(ledger, attempt)
    failures = []
    for number in range(attempt.attempt):
        decision = ledger.decision(attempt.segment, number)
        # What an attempt merely survived (a node gated out, an outage) carries a row of its own and is no failure of it.
        if decision is None or not decision.incidents or decision.incidents[0].row != decision.row:
            continue
        main = decision.incidents[0].diagnosis
        after = ledger.resume_point(attempt.segment, number + 1)
        is_before = after is not None and best > after.step
        failures.append(PastFailure(cause=main.cause, node=main.node, step=main.step, is_before_progress=is_before))
    return tuple(failures)


def _durable_step(ledger: Ledger, attempt: AttemptOpened) -> int:
    """The newest step the attempt can be resumed from, as far as it is known."""
    candidates = [m for m in ledger.candidates(attempt.segment, attempt.attempt) if not is_rejected(ledger, m.name)]
    point = ledger.resume_point(attempt.segment, attempt.attempt)
    return candidates[-1].step if candidates else (point.step if point else 0)


# ------------------------------------------------------------------------------------------------ deciding


@dataclass(frozen=True, kw_only=True, slots=True)
class _Times:
    """Nanoseconds: when all was last known to be well, when the failure was seen, when the verdict started."""

    fault_ns: int
    detected_ns: int
    started_ns: int


def _decide(ledger: Ledger, run: SegmentRun, attempt: AttemptOpened) -> DecisionRecord:
    started_ns = time.time_ns()
    config = ledger.config()
    evidence = gather(ledger, attempt)
    diagnosis = _fenced(ledger, run, attempt) or diagnose(evidence)
    choice = attended(decide(_case(ledger, attempt, evidence, diagnosis, config)), config, is_unattended=run.is_unattended)
    times = _times(ledger, attempt, evidence, started_ns)
    incidents = _incidents(ledger, attempt, evidence, diagnosis, choice, times)
    return DecisionRecord(
        segment=attempt.segment,
        attempt=attempt.attempt,
        action=choice.action,
        row=choice.row,
        message=f"{diagnosis.message}; {choice.message}" if diagnosis else choice.message,
        incidents=incidents,
        started_ns=started_ns,
        decided_ns=time.time_ns(),
        skip=_skip(ledger, attempt, choice, diagnosis),
        avoid_nodes=(diagnosis.node,) if diagnosis and diagnosis.node and choice.action is Action.REPLACE_NODE else (),
    )


def _fenced(ledger: Ledger, run: SegmentRun, attempt: AttemptOpened) -> Diagnosis | None:
    """Whether the attempt lost its token. One left over by an earlier run is judged by its records: its end is no news."""
    is_newest = attempt.attempt == len(ledger.attempts(attempt.segment)) - 1
    if attempt.run_index < run.run_index and is_newest:
        return None
    try:
        ledger.check_token(segment=attempt.segment, attempt=attempt.attempt, run_index=attempt.run_index)
    except Fenced as error:
        return Diagnosis(cause=Cause.FENCED, message=str(error), confidence=1.0)
    return None


def _case(ledger: Ledger, attempt: AttemptOpened, evidence: Evidence, diagnosis: Diagnosis | None, config: Config) -> Case:
    last_step = (attempt.segment + 1) * config.steps_per_segment
    train = evidence.train
    roster = load_fleet(config.fleet, nodes=config.nodes)
    fleet = Fleet(ledger.store)
    return Case(
        diagnosis=diagnosis,
        history=past_failures(ledger, attempt),
        attempts=attempt.attempt + 1,
        is_finished=diagnosis is None and isinstance(train, TrainRecord) and train.last_step == last_step,
        is_stop_requested=ledger.is_stop_requested(),
        is_breaker_open=fleet.is_breaker_open([node.name for node in roster], config.gate, now_ns=time.time_ns()),
        has_enough_nodes=_has_enough_nodes(candidates_for_gate(roster, fleet.states(roster)), diagnosis, config.nodes),
        settings=config.policy,
    )


def _has_enough_nodes(usable: Sequence[NodeRef], diagnosis: Diagnosis | None, needed: int) -> bool:
    return sum(diagnosis is None or node.name != diagnosis.node for node in usable) >= needed


def attended(choice: Choice, config: Config, *, is_unattended: bool) -> Choice:
    """Where nobody can answer, `ask` becomes the configured answer, and the row says so."""
    if choice.action is not Action.ASK or not is_unattended:
        return choice
    action = Action.STOP if config.policy.unattended is Unattended.STOP else Action.RETRY_SAME_NODES
    return Choice(action=action, row=f"{choice.row} (unattended)", message=f"{choice.message}; nobody is there to ask")


def _times(ledger: Ledger, attempt: AttemptOpened, evidence: Evidence, started_ns: int) -> _Times:
    record = next((r for r in (evidence.validation, evidence.train, evidence.fabric) if r is not None), None)
    if isinstance(record, TrainRecord) and record.fault_ns is not None:
        detections = [span.end_ns for span in record.spans if span.part is Part.DETECTION]
        return _Times(fault_ns=record.fault_ns, detected_ns=max(detections, default=record.ended_ns), started_ns=started_ns)
    if record is not None and record.verdict is not Verdict.ACCEPTED:
        return _Times(fault_ns=record.started_ns, detected_ns=record.ended_ns, started_ns=started_ns)
    well_ns = record.ended_ns if record is not None else attempt.opened_ns
    written = [m.written_ns for m in ledger.candidates(attempt.segment, attempt.attempt)]
    return _Times(fault_ns=max([well_ns, *written]), detected_ns=started_ns, started_ns=started_ns)


def _incidents(
    ledger: Ledger,
    attempt: AttemptOpened,
    evidence: Evidence,
    diagnosis: Diagnosis | None,
    choice: Choice,
    times: _Times,
) -> tuple[Incident, ...]:
    """The failure decided on, first; then what the attempt survived: replaced nodes, older checkpoints that did not pass,
    restarted stages, outages."""
    found = []
    if diagnosis is not None:
        found.append(_incident(diagnosis, choice.action, choice.row, times, _lost_steps(ledger, attempt, evidence)))
    found += [_incident(d, Action.REPLACE_NODE, "gated_out", _gate_times(evidence, d, times)) for d in replaced_nodes(evidence)]
    found += _rejected_at_opening(ledger, attempt, evidence)
    found += _survived_vanishings(ledger, attempt, times)
    found += _outages(evidence.train)
    return tuple(found)


def _incident(diagnosis: Diagnosis, action: Action, row: str, times: _Times, lost_steps: int = 0) -> Incident:
    return Incident(
        diagnosis=diagnosis,
        action=action,
        row=row,
        fault_ns=times.fault_ns,
        detected_ns=times.detected_ns,
        decided_ns=max(times.detected_ns, times.started_ns if row != "gated_out" else times.detected_ns),
        lost_steps=lost_steps,
    )


def _gate_times(evidence: Evidence, diagnosis: Diagnosis, times: _Times) -> _Times:
    record = evidence.gate.get(diagnosis.node or "")
    if record is None:
        return times
    return _Times(fault_ns=record.started_ns, detected_ns=record.ended_ns, started_ns=times.started_ns)


def _rejected_at_opening(ledger: Ledger, attempt: AttemptOpened, evidence: Evidence) -> list[Incident]:
    """A checkpoint nobody had judged yet was trusted when steps were counted as lost; each that did not pass costs those down
    to the next older one."""
    point = ledger.resume_point(attempt.segment, attempt.attempt)
    rejected = [older for older in evidence.opening if older.is_rejected]
    steps = [*(older.step for older in rejected), point.step if point is not None else 0]
    found = []
    for older, next_step in zip(rejected, steps[1:], strict=True):
        diagnosis = from_failure(Stage.CHECKPOINT_VALIDATION, older.record)
        at = _Times(fault_ns=older.record.started_ns, detected_ns=older.record.ended_ns, started_ns=older.record.ended_ns)
        found.append(_incident(diagnosis, Action.ROLL_BACK, "rejected_at_opening", at, older.step - next_step))
    return found


def _survived_vanishings(ledger: Ledger, attempt: AttemptOpened, times: _Times) -> list[Incident]:
    found = []
    names = [*(s.value for s in _RUNG_STAGES), *(f"gate_node-{node.name}" for node in attempt.nodes)]
    for name in names:
        key = ledger.record_key(attempt.segment, attempt.attempt, name)
        if not ledger.store.exists(key):
            continue
        for record in ledger.vanishings(key):
            diagnosis = from_failure(record.stage, record)
            at = _Times(fault_ns=record.started_ns, detected_ns=record.ended_ns, started_ns=record.ended_ns)
            found.append(_incident(diagnosis, Action.RETRY_SAME_NODES, "stage_started_again", at))
    return found


def _outages(train: TrainRecord | FailedRecord | None) -> list[Incident]:
    if not isinstance(train, TrainRecord):
        return []
    return [
        Incident(
            diagnosis=Diagnosis(cause=Cause.STORAGE_UNAVAILABLE, message=outage.message, confidence=0.9, step=outage.step),
            action=Action.ACCEPT,
            row="waited_out",
            fault_ns=outage.start_ns,
            detected_ns=outage.start_ns,
            decided_ns=outage.end_ns,
        )
        for outage in train.outages
    ]


def _lost_steps(ledger: Ledger, attempt: AttemptOpened, evidence: Evidence) -> int:
    executed = evidence.train.last_step if isinstance(evidence.train, TrainRecord) else _last_step_seen(ledger, attempt)
    return max(0, executed - _durable_step(ledger, attempt))


def _last_step_seen(ledger: Ledger, attempt: AttemptOpened) -> int:
    """What the scratch of an attempt that left no record shows, where it lies on this machine; 0 where nothing does."""
    root, number = ledger.store.root, attempt.attempt
    last = read_last(attempt_scratch(root, ledger.name, attempt.segment, number, opened_ns=attempt.opened_ns))
    return last.step if last is not None else 0


def _skip(ledger: Ledger, attempt: AttemptOpened, choice: Choice, diagnosis: Diagnosis | None) -> tuple[Window, ...]:
    if choice.action is not Action.ROLL_BACK_AND_SKIP or diagnosis is None or diagnosis.step is None:
        return ()
    from prunella.data.order import batch_for_step

    point = ledger.resume_point(attempt.segment, attempt.attempt)
    batch = batch_for_step(diagnosis.step, point.skipped if point else ())
    return (Window(first=batch, last=batch),)


# ------------------------------------------------------------------------------------------------ acting


def _carry_out(ledger: Ledger, attempt: AttemptOpened, decision: DecisionRecord) -> None:
    fleet = Fleet(ledger.store)
    for node in decision.avoid_nodes:
        last = fleet.last(node)
        if last is None or last.at_ns <= decision.decided_ns:  # else it was done, and a person may have undone it since
            fleet.cordon(node, Owner.POLICY, decision.message, {"row": decision.row})
    for incident in decision.incidents:
        if incident.diagnosis.cause is Cause.CHECKPOINT_INVALID and _came_from_load(incident.diagnosis):
            _revoke_resume_checkpoint(ledger, attempt, incident.diagnosis.message)


def _came_from_load(diagnosis: Diagnosis) -> bool:
    return diagnosis.evidence.get("stage") == Stage.TRAINING_SEGMENT


def _revoke_resume_checkpoint(ledger: Ledger, attempt: AttemptOpened, reason: str) -> None:
    """A verified checkpoint that no longer loads is not resumed from again."""
    point = ledger.resume_point(attempt.segment, attempt.attempt)
    if point is None or point.checkpoint is None:
        return
    mark = CheckpointMark(checkpoint=point.checkpoint.name, reason=reason, at_ns=time.time_ns())
    with contextlib.suppress(KeyExists):
        ledger.put(ledger.mark_key(point.checkpoint.name, "revoked"), mark)


def accepted_records(ledger: Ledger, attempt: AttemptOpened) -> dict[str, str]:
    """Key and sha256 of every record of an accepted attempt: what the close vouches for."""
    names = [*(f"gate_node-{node.name}" for node in attempt.nodes), *(s.value for s in RECORD_OF)]
    keys = [ledger.record_key(attempt.segment, attempt.attempt, name) for name in names]
    keys += [ledger.resume_key(attempt.segment, attempt.attempt), ledger.decision_key(attempt.segment, attempt.attempt)]
    return {key: ledger.sha256(key) for key in keys if ledger.store.exists(key)}
