"""What a stage is told: one request a stage, written before the stage starts."""

from dataclasses import dataclass, field

from prunella.records.parts import CheckpointRef, NodeRef, Record, Window
from prunella.records.words import Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Request(Record):
    """What every stage is told. `output` is the key its record will be written to; `inputs` maps keys to sha256.

    `opened_ns` is when the attempt was opened; with the number it names the attempt's scratch.
    """

    stage: Stage
    root: str
    experiment: str
    config_digest: str
    output: str
    segment: int = 0
    attempt: int = 0
    run_index: int = 0
    opened_ns: int = 0
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
