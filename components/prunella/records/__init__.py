"""What passes between stages and what the ledger holds. Read this file first.

A request tells a stage what to do, a record tells what came of it; both are immutable. Each carries its schema
`<kind>/<version>`; older versions are migrated by pure functions in `sealing.py`, newer ones are refused with advice.
On disk a record is two lines: the sha256 of the second, then canonical JSON, so that damage is found before any parser
runs, and `jq` still reads the file. `None` means "does not apply", never "failed".

Units: `_ns` integer nanoseconds on the wall clock of the attempt's machine, `_nats` natural-log cross-entropy.
Segments, attempts and ranks count from 0, optimizer steps from 1 over the whole experiment.
"""

from prunella.records.answers import (
    RECORD_OF,
    CheckResult,
    DataPrepRecord,
    EvaluationRecord,
    FailedRecord,
    GateFabricRecord,
    GateNodeRecord,
    Outage,
    RankExit,
    StageRecord,
    TaskScore,
    TrainRecord,
    ValidationCheck,
    ValidationRecord,
)
from prunella.records.experiment import (
    AttemptOpened,
    DecisionRecord,
    Diagnosis,
    Directive,
    ExperimentRecord,
    FaultFired,
    Incident,
    NodeEvent,
    ResumePoint,
    SegmentClosed,
    SegmentOpened,
    StageLaunched,
)
from prunella.records.parts import (
    CheckpointRef,
    Failure,
    FileEntry,
    Json,
    NodeRef,
    Record,
    Span,
    Window,
)
from prunella.records.requests import (
    DataPrepRequest,
    EvaluateRequest,
    GateFabricRequest,
    GateNodeRequest,
    Request,
    TrainRequest,
    ValidateRequest,
)
from prunella.records.sealing import (
    from_bytes,
    seal,
    stage_record_from_bytes,
    to_bytes,
    unseal,
)
from prunella.records.training import (
    CheckpointManifest,
    CheckpointMark,
    StepRecord,
)
from prunella.records.words import (
    Action,
    Health,
    NodeState,
    Outcome,
    Part,
    Stage,
    StopReason,
    Verdict,
)

__all__ = [
    "RECORD_OF",
    "Action",
    "AttemptOpened",
    "CheckResult",
    "CheckpointManifest",
    "CheckpointMark",
    "CheckpointRef",
    "DataPrepRecord",
    "DataPrepRequest",
    "DecisionRecord",
    "Diagnosis",
    "Directive",
    "EvaluateRequest",
    "EvaluationRecord",
    "ExperimentRecord",
    "FailedRecord",
    "Failure",
    "FaultFired",
    "FileEntry",
    "GateFabricRecord",
    "GateFabricRequest",
    "GateNodeRecord",
    "GateNodeRequest",
    "Health",
    "Incident",
    "Json",
    "NodeEvent",
    "NodeRef",
    "NodeState",
    "Outage",
    "Outcome",
    "Part",
    "RankExit",
    "Record",
    "Request",
    "ResumePoint",
    "SegmentClosed",
    "SegmentOpened",
    "Span",
    "Stage",
    "StageLaunched",
    "StageRecord",
    "StepRecord",
    "StopReason",
    "TaskScore",
    "TrainRecord",
    "TrainRequest",
    "ValidateRequest",
    "ValidationCheck",
    "ValidationRecord",
    "Verdict",
    "Window",
    "from_bytes",
    "seal",
    "stage_record_from_bytes",
    "to_bytes",
    "unseal",
]
