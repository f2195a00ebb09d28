"""The closed vocabularies of the system: every verdict, state, action and part of time has one spelling."""

from enum import StrEnum


class Stage(StrEnum):
    """The work that runs as `prunella stage NAME`, one process each."""

    DATA_PREP = "data_prep"
    GATE_NODE = "gate_node"
    GATE_FABRIC = "gate_fabric"
    TRAINING_SEGMENT = "training_segment"
    CHECKPOINT_VALIDATION = "checkpoint_validation"
    EVALUATION = "evaluation"


class Verdict(StrEnum):
    """What a stage says of its subject. `unknown` is never healthy."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNKNOWN = "unknown"


class Health(StrEnum):
    """What one check says of one node."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


class Action(StrEnum):
    """What the policy can choose; each is an edge of the graph."""

    ACCEPT = "accept"
    RETRY_SAME_NODES = "retry_same_nodes"
    REPLACE_NODE = "replace_node"
    ROLL_BACK = "roll_back"
    ROLL_BACK_AND_SKIP = "roll_back_and_skip"
    ASK = "ask"
    STOP = "stop"


class StopReason(StrEnum):
    """Why a training segment ended."""

    END = "end"
    SIGNAL = "signal"
    WALL_CLOCK = "wall_clock"
    FAILURE = "failure"


class Outcome(StrEnum):
    """How a segment's DAG run closed."""

    ACCEPTED = "accepted"
    FAILED = "failed"
    STOPPED = "stopped"


class NodeState(StrEnum):
    """A node's place in its life cycle (FIELD 2 of the LTP paper, with the gaps filled)."""

    NEW = "new"
    VALIDATING = "validating"
    AVAILABLE = "available"
    CORDONED = "cordoned"
    RETURNED = "returned"


class Part(StrEnum):
    """Where a second of elapsed time went. The parts add up to elapsed time exactly."""

    PRODUCTIVE = "productive"
    INITIALISATION = "initialisation"
    DATA_PREPARATION = "data_preparation"
    DATA_WAIT = "data_wait"
    CHECKPOINT_STALL = "checkpoint_stall"
    GATE = "gate"
    VALIDATION = "validation"
    LOST_PROGRESS = "lost_progress"
    DETECTION = "detection"
    DECISION = "decision"
    TEARDOWN = "teardown"
    ACQUISITION = "acquisition"
    LOAD = "load"
    FIRST_STEP = "first_step"
    EVALUATION = "evaluation"
    ORCHESTRATION = "orchestration"
    PAUSED = "paused"
    UNKNOWN = "unknown"
