"""Fold an experiment's ledger into one frozen picture: what was executed, what was kept, what was decided.

Everything downstream (time, incidents, summary, mirror, report) is a pure function of a `History`. It trusts the ledger's
seals and digests, decides only which executed steps are kept, and never writes. Names of stage records are discovered
by listing, because a picture may discover; nothing that trains or heals depends on it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from prunella import codec
from prunella.config import Config
from prunella.errors import ConfigError
from prunella.ledger import LAUNCHED, Ledger
from prunella.records import (
    AttemptOpened,
    CheckpointManifest,
    CheckpointMark,
    DataPrepRecord,
    DecisionRecord,
    Directive,
    EvaluationRecord,
    ExperimentRecord,
    FailedRecord,
    FaultFired,
    FileEntry,
    GateFabricRecord,
    GateNodeRecord,
    Outcome,
    ResumePoint,
    SegmentClosed,
    SegmentOpened,
    StageRecord,
    StepRecord,
    TrainRecord,
    ValidationRecord,
    Verdict,
)

S = TypeVar("S", bound=StageRecord)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One execution of an optimizer step. Kept: it is part of the weights that go on; otherwise it was superseded."""

    record: StepRecord
    segment: int
    attempt: int
    is_kept: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A committed checkpoint with its verdict and marks. `validation` None: nobody judged it."""

    manifest: CheckpointManifest
    validation: ValidationRecord | FailedRecord | None
    promoted: CheckpointMark | None
    revoked: CheckpointMark | None
    pruned: CheckpointMark | None

    @property
    def is_verified(self) -> bool:
        """Whether it passed, and nothing since said otherwise."""
        return self.validation is not None and self.validation.verdict is Verdict.ACCEPTED and self.revoked is None

    @property
    def is_at_hand(self) -> bool:
        """Whether it is verified and its files are still there: retention took none of them."""
        return self.is_verified and self.pruned is None

    @property
    def is_rejected(self) -> bool:
        """Whether it was judged and may not be resumed from."""
        is_refused = self.validation is not None and self.validation.verdict is Verdict.REJECTED
        return is_refused or self.revoked is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One rung: what each stage answered (None: no record), what was executed, what was decided."""

    opened: AttemptOpened
    resume: ResumePoint | None
    gate_nodes: tuple[GateNodeRecord | FailedRecord, ...]
    gate_fabric: GateFabricRecord | FailedRecord | None
    training: TrainRecord | FailedRecord | None
    validations: tuple[ValidationRecord | FailedRecord, ...]
    evaluation: EvaluationRecord | FailedRecord | None
    preparation: DataPrepRecord | FailedRecord | None
    decision: DecisionRecord | None
    checkpoints: tuple[Checkpoint, ...]
    steps: tuple[Step, ...]

    @property
    def stage_records(self) -> tuple[StageRecord, ...]:
        """Every answer that exists."""
        single = (self.preparation, self.gate_fabric, self.training, self.evaluation)
        return (*self.gate_nodes, *self.validations, *(record for record in single if record is not None))


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A segment: its DAG runs, how each closed (None: it has not), and its attempts, numbered over all runs.

    `preparations` holds each run's own look at the data set.
    """

    index: int
    runs: tuple[SegmentOpened, ...]
    closes: tuple[SegmentClosed | None, ...]
    preparations: tuple[DataPrepRecord | FailedRecord, ...]
    attempts: tuple[Attempt, ...]

    @property
    def accepted(self) -> SegmentClosed | None:
        """The close that accepted the segment, if one did."""
        return next((close for close in self.closes if close is not None and close.outcome is Outcome.ACCEPTED), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """All that the ledger says of one experiment."""

    experiment: ExperimentRecord
    experiment_sha256: str
    config: Config
    dataset: DataPrepRecord | FailedRecord | None
    segments: tuple[Segment, ...]
    firings: tuple[FaultFired, ...]
    directives: tuple[Directive, ...]

    @property
    def is_stop_requested(self) -> bool:
        """Whether the last word of the operators is stop."""
        return _is_stopped(self.directives)

    def is_at_rest(self, at_ns: int) -> bool:
        """Whether there was nothing to run at a moment: an operator's stop held, or every segment had been accepted."""
        said = [directive for directive in self.directives if directive.at_ns <= at_ns]
        totals = [self.experiment.config["segments"], *(word.segments for word in said if word.segments is not None)]
        accepted = [segment.accepted for segment in self.segments]
        done = sum(close is not None and close.closed_ns <= at_ns for close in accepted)
        return _is_stopped(said) or done >= int(totals[-1])

    @property
    def runs(self) -> tuple[tuple[SegmentOpened, SegmentClosed | None], ...]:
        """DAG runs with their closes, in the order in which they were opened."""
        pairs = [pair for segment in self.segments for pair in zip(segment.runs, segment.closes, strict=True)]
        return tuple(sorted(pairs, key=lambda pair: pair[0].opened_ns))

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """All attempts, in order."""
        return tuple(attempt for segment in self.segments for attempt in segment.attempts)

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every executed step, in order of execution."""
        return tuple(step for attempt in self.attempts for step in attempt.steps)

    @property
    def kept_steps(self) -> tuple[StepRecord, ...]:
        """The steps that the current weights are made of, each once, in order."""
        return tuple(step.record for step in self.steps if step.is_kept)

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """All committed checkpoints, in order of writing."""
        return tuple(checkpoint for attempt in self.attempts for checkpoint in attempt.checkpoints)

    @property
    def evaluations(self) -> tuple[EvaluationRecord, ...]:
        """All evaluations that came to a result, in order."""
        return tuple(a.evaluation for a in self.attempts if isinstance(a.evaluation, EvaluationRecord))

    def until(self, at_ns: int) -> "History":
        """The picture without what was opened after `at_ns`: what a reader at a close would have seen."""
        segments = tuple(_segment_until(segment, at_ns) for segment in self.segments)
        firings = tuple(firing for firing in self.firings if firing.at_ns <= at_ns)
        return replace(self, segments=tuple(segment for segment in segments if segment.runs), firings=firings)


def _is_stopped(directives: Sequence[Directive]) -> bool:
    words = [directive.is_stop for directive in directives if directive.is_stop is not None]
    return bool(words and words[-1])


def _segment_until(segment: Segment, at_ns: int) -> Segment:
    is_known = [run.opened_ns <= at_ns for run in segment.runs]
    return Segment(
        index=segment.index,
        runs=tuple(run for run, known in zip(segment.runs, is_known, strict=True) if known),
        closes=tuple(close for close, known in zip(segment.closes, is_known, strict=True) if known),
        preparations=tuple(record for record in segment.preparations if record.started_ns <= at_ns),
        attempts=tuple(attempt for attempt in segment.attempts if attempt.opened.opened_ns <= at_ns),
    )


# ------------------------------------------------------------------------------------------------ reading


def read_history(ledger: Ledger) -> History:
    """Read everything the ledger says of its experiment.

    Raises:
        ConfigError: there is no such experiment, or a record is malformed.
        DigestMismatch: a record or a chunk of step records is damaged.
        StorageUnavailable: the store did not answer.
    """
    return History(
        experiment=ledger.experiment(),
        experiment_sha256=ledger.sha256(ledger.experiment_key),
        config=ledger.config(),
        dataset=ledger.find_stage_record(DataPrepRecord, ledger.dataset_key),
        segments=_mark_kept(_read_segments(ledger)),
        firings=_read_firings(ledger),
        directives=tuple(ledger.directives()),
    )


def _read_segments(ledger: Ledger) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    while runs := ledger.runs(len(segments)):
        index = len(segments)
        run_keys = [f"{ledger.segment_prefix(index)}/runs/{run.run_index:02d}/data_prep.json" for run in runs]
        preparations = (ledger.find_stage_record(DataPrepRecord, key) for key in run_keys)
        segments.append(
            Segment(
                index=index,
                runs=tuple(runs),
                closes=tuple(ledger.closed(index, run.run_index) for run in runs),
                preparations=tuple(record for record in preparations if record is not None),
                attempts=tuple(_read_attempt(ledger, opened) for opened in ledger.attempts(index)),
            )
        )
    return tuple(segments)


def _read_attempt(ledger: Ledger, opened: AttemptOpened) -> Attempt:
    segment, attempt = opened.segment, opened.attempt
    training = _read_one(ledger, opened, TrainRecord, "training_segment")
    manifests = ledger.candidates(segment, attempt)
    return Attempt(
        opened=opened,
        resume=ledger.resume_point(segment, attempt),
        gate_nodes=_read_many(ledger, opened, GateNodeRecord, "gate_node"),
        gate_fabric=_read_one(ledger, opened, GateFabricRecord, "gate_fabric"),
        training=training,
        validations=_read_many(ledger, opened, ValidationRecord, "checkpoint_validation"),
        evaluation=_read_one(ledger, opened, EvaluationRecord, "evaluation"),
        preparation=_read_one(ledger, opened, DataPrepRecord, "data_prep"),
        decision=ledger.decision(segment, attempt),
        checkpoints=tuple(_read_checkpoint(ledger, manifest) for manifest in manifests),
        steps=_read_steps(ledger, segment, attempt, manifests, training),
    )


def _read_one(ledger: Ledger, opened: AttemptOpened, kind: type[S], name: str) -> S | FailedRecord | None:
    return ledger.find_stage_record(kind, ledger.record_key(opened.segment, opened.attempt, name))


def _read_many(ledger: Ledger, opened: AttemptOpened, kind: type[S], name: str) -> tuple[S | FailedRecord, ...]:
    """Records `<name>.json` and `<name>-<subject>.json`, sorted by subject."""
    files = ledger.store.list(f"{ledger.attempt_prefix(opened.segment, opened.attempt)}/records")
    stems = [file.removesuffix(".json") for file in files if LAUNCHED not in file]
    found = (_read_one(ledger, opened, kind, stem) for stem in stems if stem.partition("-")[0] == name)
    return tuple(record for record in found if record is not None)


def _read_checkpoint(ledger: Ledger, manifest: CheckpointManifest) -> Checkpoint:
    return Checkpoint(
        manifest=manifest,
        validation=ledger.find_stage_record(ValidationRecord, ledger.verdict_key(manifest.name)),
        promoted=ledger.mark(manifest.name, "promoted"),
        revoked=ledger.mark(manifest.name, "revoked"),
        pruned=ledger.mark(manifest.name, "pruned"),
    )


def _read_firings(ledger: Ledger) -> tuple[FaultFired, ...]:
    names = ledger.store.list(f"{ledger.prefix}/faults")
    found = (ledger.find(FaultFired, f"{ledger.prefix}/faults/{name}") for name in names)
    return tuple(sorted((firing for firing in found if firing is not None), key=lambda firing: firing.at_ns))


def _read_steps(
    ledger: Ledger,
    segment: int,
    attempt: int,
    manifests: list[CheckpointManifest],
    training: TrainRecord | FailedRecord | None,
) -> tuple[Step, ...]:
    """Executed steps that a manifest or the training record vouches for. A chunk named by both is read once."""
    entries = [entry for manifest in manifests for entry in manifest.metrics]
    entries += training.metrics if isinstance(training, TrainRecord) else ()
    chunks = {entry.key: entry for entry in entries}
    records = [record for entry in chunks.values() for record in read_chunk(ledger, entry)]
    records.sort(key=lambda record: record.start_ns)
    return tuple(Step(record=record, segment=segment, attempt=attempt) for record in records)


def read_chunk(ledger: Ledger, entry: FileEntry) -> list[StepRecord]:
    """The step records of one chunk, one JSON object a line.

    Raises:
        DigestMismatch: the chunk is not the one that was committed.
        ConfigError: a line is no step record.
    """
    lines = ledger.read_verified(entry.key, entry.sha256).decode().splitlines()
    return [_parse_step(line, f"{entry.key}:{number}") for number, line in enumerate(lines, start=1) if line]


def _parse_step(line: str, where: str) -> StepRecord:
    try:
        return codec.decode(StepRecord, json.loads(line), where)
    except ValueError as error:
        raise ConfigError(f"{where}: expected a step record in JSON, found {line[:60]!r}") from error


# ------------------------------------------------------------------------------------------------ what was kept


def _mark_kept(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Mark the steps that the weights are made of.

    Walking back from the newest attempt, `horizon` is the earliest step that any later attempt resumed from: what an
    attempt executed beyond it was thrown away. An accepted segment also ends at its accepted checkpoint, and the newest
    attempt keeps what its last candidate holds.
    """
    horizon: int | None = None
    marked: list[Segment] = []
    for segment in reversed(segments):
        attempts: list[Attempt] = []
        for attempt in reversed(segment.attempts):
            limit = _last_kept(segment, attempt, horizon)
            steps = tuple(replace(step, is_kept=step.record.step <= limit) for step in attempt.steps)
            attempts.insert(0, replace(attempt, steps=steps))
            if attempt.resume is not None:
                horizon = attempt.resume.step if horizon is None else min(horizon, attempt.resume.step)
        marked.insert(0, replace(segment, attempts=tuple(attempts)))
    kept = [step.record.step for segment in marked for a in segment.attempts for step in a.steps if step.is_kept]
    assert len(kept) == len(set(kept)), f"a step was kept twice: {sorted({step for step in kept if kept.count(step) > 1})}"
    return tuple(marked)


def _last_kept(segment: Segment, attempt: Attempt, horizon: int | None) -> int:
    limits = [] if horizon is None else [horizon]
    if segment.accepted is not None and segment.accepted.checkpoint is not None:
        limits.append(segment.accepted.checkpoint.step)
    return min(limits) if limits else _last_durable(attempt)


def _last_durable(attempt: Attempt) -> int:
    durable = [checkpoint.manifest.step for checkpoint in attempt.checkpoints if not checkpoint.is_rejected]
    return max(durable, default=0)
