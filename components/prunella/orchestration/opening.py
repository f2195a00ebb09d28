"""The start of a segment and of each of its attempts: data, predecessor, token, resume point, nodes to gate.

Opening an attempt takes the token first, so that older writers are fenced, and only then looks for the newest checkpoint
that passes: candidates are judged newest first by the ordinary validation stage until one is accepted.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from prunella import codec
from prunella.checkpoint_history import clear_unfinished, recent_checkpoints, verified_before
from prunella.config import Config
from prunella.errors import Cause, ConfigError, KeyExists, PrunellaError
from prunella.fleet.lifecycle import Fleet
from prunella.fleet.roster import candidates_for_gate, load_fleet
from prunella.launch import door
from prunella.launch import handle as handles
from prunella.ledger import Ledger
from prunella.orchestration.ask_stage import Asking, Unlaunchable, ask
from prunella.orchestration.claim import SegmentRun, addressed
from prunella.orchestration.judging import settle, validation_at_opening
from prunella.records import (
    AttemptOpened,
    CheckpointRef,
    DataPrepRecord,
    DataPrepRequest,
    FailedRecord,
    GateNodeRequest,
    Part,
    ResumePoint,
    Span,
    Stage,
    StageRecord,
    ValidateRequest,
    ValidationRecord,
    Verdict,
    Window,
)
from prunella.scratch import attempt_scratch, run_scratch

logger = logging.getLogger(__name__)

#: A process that vanished is started again this often, for stages that change nothing but their own record.
RELAUNCHES = 2


OnStart = Callable[[handles.Handle], None]


class StepFailed(Exception):
    """A step whose failure closes the segment. `record` says why, and is in the ledger already; without one, `cause` does."""

    def __init__(self, record: StageRecord | None, message: str, cause: Cause = Cause.UNKNOWN) -> None:
        super().__init__(message)
        self.record = record
        self.cause = cause


# ------------------------------------------------------------------------------------------------ data and segment


def prepare_data(run: SegmentRun, on_start: OnStart = lambda handle: None) -> str:
    """Have the data set made, or verified; returns the key of its record.

    Raises:
        StepFailed: there is no data set to train on.
    """
    ledger = run.ledger()
    key = _data_prep_key(ledger, run)
    asking = Asking(scratch=_data_prep_scratch(ledger, run), relaunches=RELAUNCHES, on_start=on_start)
    try:
        record = _prepare(ledger, run, key, asking, is_repair=False)
    except Unlaunchable as error:
        raise StepFailed(None, str(error), error.cause) from error
    if not isinstance(record, DataPrepRecord) or record.verdict is not Verdict.ACCEPTED:
        raise _no_dataset(record or last_vanishing(ledger, key))
    _name_dataset(ledger, record)
    return key


def _no_dataset(record: StageRecord | None) -> StepFailed:
    why = record.failure.message if record is not None and record.failure is not None else "data prep left no record"
    return StepFailed(record, f"no data set: {why}", Cause.VANISHED)


def last_vanishing(ledger: Ledger, output: str) -> FailedRecord | None:
    """The last start of a stage that ended without the record it was to write at `output`; None where none did."""
    ended = ledger.vanishings(output)
    return ended[-1] if ended else None


def _data_prep_key(ledger: Ledger, run: SegmentRun) -> str:
    return f"{ledger.segment_prefix(run.segment)}/runs/{run.run_index:02d}/data_prep.json"


def _data_prep_scratch(ledger: Ledger, run: SegmentRun) -> Path:
    """Where a run keeps the process of its data prep on this machine, which belongs to no attempt."""
    opened = ledger.runs(run.segment)[run.run_index]
    return run_scratch(run.root, run.experiment, run.segment, run.run_index, opened_ns=opened.opened_ns)


def failure_of(run: SegmentRun, message: str, cause: Cause = Cause.UNKNOWN) -> StepFailed:
    """What a step before the attempts failed of, with the record that says so where there is one.

    Args:
        message: what is known of it otherwise.
        cause: as what it is known otherwise.
    """
    ledger = run.ledger()
    key = _data_prep_key(ledger, run)
    record = ledger.find_stage_record(DataPrepRecord, key) or last_vanishing(ledger, key)
    if isinstance(record, FailedRecord):
        return _no_dataset(record)
    return StepFailed(None, _obstacle(ledger, run) or message, cause)


def _prepare(ledger: Ledger, run: SegmentRun, key: str, asking: Asking, *, is_repair: bool) -> StageRecord | None:
    request = DataPrepRequest(
        stage=Stage.DATA_PREP,
        root=run.root,
        experiment=run.experiment,
        config_digest=codec.digest(ledger.config()),
        output=key,
        segment=run.segment,
        run_index=run.run_index,
        is_repair=is_repair,
    )
    return ask(ledger, key.replace(".json", ".request.json"), request, asking)


def _name_dataset(ledger: Ledger, record: DataPrepRecord) -> None:
    try:
        ledger.put(ledger.dataset_key, record)
    except KeyExists:
        known = dataset(ledger)
        if known.fingerprint != record.fingerprint:
            raise ConfigError(
                f"experiment {ledger.name!r} trains on data set {known.fingerprint}, but its corpus now gives "
                f"{record.fingerprint}; restore the corpus, or start another experiment"
            ) from None


def dataset(ledger: Ledger) -> DataPrepRecord:
    """The experiment's data set. Raises ConfigError when it has none yet."""
    record = ledger.find_stage_record(DataPrepRecord, ledger.dataset_key)
    if not isinstance(record, DataPrepRecord):
        raise ConfigError(f"experiment {ledger.name!r} has no data set yet; its first step is prepare_data")
    return record


def open_segment(run: SegmentRun) -> None:
    """Check that the segment may run, stop what an earlier run left behind, and settle its attempts.

    Raises:
        StepFailed: the experiment was stopped, or the segment before was not accepted.
    """
    ledger = run.ledger()
    if (obstacle := _obstacle(ledger, run)) is not None:
        raise StepFailed(None, obstacle)
    _stop_leftovers(ledger, run)
    settle(ledger, run)


def _obstacle(ledger: Ledger, run: SegmentRun) -> str | None:
    """Why the segment may not run; None where it may."""
    if ledger.is_stop_requested():
        return "the experiment is stopped; `prunella resume` takes the stop back"
    if run.segment > 0 and ledger.accepted(run.segment - 1) is None:
        return f"segment {run.segment - 1} was not accepted; run it first"
    return None


def _stop_leftovers(ledger: Ledger, run: SegmentRun) -> None:
    """SIGTERM what runs of unfinished older attempts, on this machine or on the cluster: it saves before it is fenced."""
    for attempt in ledger.attempts(run.segment):
        if ledger.decision(run.segment, attempt.attempt) is not None:
            continue
        if door.launcher() == door.KUBERNETES:
            from prunella.orchestration.cluster_stages import stop_leftovers  # brings the cluster's client

            stop_leftovers(ledger, attempt)
        for path in scratch_of(run, attempt).glob("*.handle"):
            found = handles.read(path)
            if found is not None and found.is_alive:
                logger.warning("leftover_stopped handle=%s file=%s", found, path.name)
                door.stop(found)


# ------------------------------------------------------------------------------------------------ attempt


def open_attempt(run: SegmentRun, rung: int) -> tuple[str, ...]:
    """Take the token, clear away what those before left half sent, repair data if that is what failed, find the resume point.

    Returns the keys of the gate requests.

    Raises:
        KeyExists: another run took the token first.
    """
    ledger = run.ledger()
    config = ledger.config()
    attempt = run.attempt(ledger, rung) or _take_token(ledger, run, rung, config)
    if ledger.resume_point(run.segment, attempt.attempt) is None:
        clear_unfinished(ledger)
        _repair_data(ledger, run, attempt)
        _put_resume_point(ledger, run, attempt)
    return tuple(_request_gate(ledger, run, attempt, node.name) for node in attempt.nodes)


def _take_token(ledger: Ledger, run: SegmentRun, rung: int, config: Config) -> AttemptOpened:
    fleet = load_fleet(config.fleet, nodes=config.nodes)
    opened = AttemptOpened(
        segment=run.segment,
        attempt=len(ledger.attempts(run.segment)),
        run_index=run.run_index,
        run_id=run.run_id,
        rung=rung,
        opened_ns=time.time_ns(),
        nodes=candidates_for_gate(fleet, Fleet(ledger.store).states(fleet)),
    )
    ledger.open_attempt(opened)
    logger.info("attempt_opened segment=%s attempt=%s nodes=%s", run.segment, opened.attempt, [n.name for n in opened.nodes])
    return opened


def _repair_data(ledger: Ledger, run: SegmentRun, attempt: AttemptOpened) -> None:
    if attempt.attempt == 0:
        return
    before = ledger.decision(run.segment, attempt.attempt - 1)
    if before is None or not any(incident.diagnosis.cause is Cause.DATA_CORRUPT for incident in before.incidents):
        return
    key = ledger.record_key(run.segment, attempt.attempt, "data_prep")
    asking = Asking(scratch=scratch_of(run, attempt), relaunches=RELAUNCHES)
    record = _prepare(ledger, run, key, asking, is_repair=True)
    logger.warning("dataset_repaired record=%s", record)


def _put_resume_point(ledger: Ledger, run: SegmentRun, attempt: AttemptOpened) -> None:
    started_ns = time.time_ns()
    rejected: list[CheckpointRef] = []
    chosen: CheckpointRef | None = None
    for manifest in recent_checkpoints(ledger, run.segment):
        ref = ledger.ref(manifest)
        if _passes(ledger, run, attempt, ref):
            chosen = ref
            break
        rejected.append(ref)
    point = ResumePoint(
        step=chosen.step if chosen else 0,
        checkpoint=chosen,
        rejected=tuple(rejected),
        skipped=skipped_windows(ledger, run.segment),
        decided_ns=time.time_ns(),
        spans=(Span(part=Part.VALIDATION, start_ns=started_ns, end_ns=time.time_ns()),),
    )
    with contextlib.suppress(KeyExists):  # another try of this task decided the same a moment ago
        ledger.put(ledger.resume_key(run.segment, attempt.attempt), point)
    logger.info("resume_point_chosen segment=%s attempt=%s step=%s", run.segment, attempt.attempt, point.step)


def _passes(ledger: Ledger, run: SegmentRun, attempt: AttemptOpened, ref: CheckpointRef) -> bool:
    known = ledger.validation(ref.name)
    if known is not None:
        return known.verdict is Verdict.ACCEPTED
    record = validate(ledger, run, attempt, ref, name=validation_at_opening(ref.name))
    if not isinstance(record, ValidationRecord):
        why = record.failure.message if record is not None and record.failure is not None else "its validation left no record"
        raise PrunellaError(f"checkpoint {ref.name} could not be judged ({why}); not seen is not rejected")
    return record.verdict is Verdict.ACCEPTED


def validate(
    ledger: Ledger,
    run: SegmentRun,
    attempt: AttemptOpened,
    ref: CheckpointRef,
    *,
    name: str,
    on_start: OnStart = lambda handle: None,
) -> StageRecord | None:
    """Have a candidate judged by the validation stage, on behalf of an attempt."""
    request = ValidateRequest(
        **addressed(run, ledger, attempt, Stage.CHECKPOINT_VALIDATION, name),
        inputs={ledger.manifest_key(ref.name): ref.manifest_sha256},
        candidate=ref,
        dataset=dataset(ledger).fingerprint,
        previous=verified_before(ledger, run.segment, ref.step),
    )
    asking = Asking(scratch=scratch_of(run, attempt), relaunches=RELAUNCHES, on_start=on_start)
    return ask(ledger, ledger.request_key(run.segment, attempt.attempt, name), request, asking)


def skipped_windows(ledger: Ledger, segment: int) -> tuple[Window, ...]:
    """Every window of batches that a decision left out so far."""
    decisions = (ledger.decision(s, a.attempt) for s in range(segment + 1) for a in ledger.attempts(s))
    return tuple(window for decision in decisions if decision is not None for window in decision.skip)


def _request_gate(ledger: Ledger, run: SegmentRun, attempt: AttemptOpened, node: str) -> str:
    name = f"gate_node-{node}"
    key = ledger.request_key(run.segment, attempt.attempt, name)
    request = GateNodeRequest(
        **addressed(run, ledger, attempt, Stage.GATE_NODE, name),
        nodes=attempt.nodes,
        node=node,
    )
    ledger.put_request(key, request)
    return key


def scratch_of(run: SegmentRun, attempt: AttemptOpened) -> Path:
    """The attempt's scratch folder on this machine."""
    return attempt_scratch(run.root, run.experiment, run.segment, attempt.attempt, opened_ns=attempt.opened_ns)
