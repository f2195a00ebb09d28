"""The story of an experiment and of its nodes: openings, decisions, incidents, closes, events."""

from dataclasses import dataclass, field
from typing import Any

from prunella.errors import Cause
from prunella.records.parts import CheckpointRef, Json, NodeRef, Record, Span, Window
from prunella.records.words import Action, NodeState, Outcome, Stage


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
    """A DAG run took up a segment, dense under `segments/<n>/runs/`.

    `is_carried_on`: by the command that ran the one before, which went on to it by itself (`prunella run`).
    """

    KIND = "segment_opened"
    VERSION = 2
    segment: int
    run_index: int
    run_id: str
    opened_ns: int
    is_carried_on: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class StageLaunched(Record):
    """A stage is about to be started on `host`. Written before it is, so that nobody elsewhere starts it again."""

    KIND = "stage_launched"
    stage: Stage
    host: str
    at_ns: int


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
