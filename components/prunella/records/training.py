"""What training leaves behind while it runs: step records, and the manifests of the checkpoints it commits."""

from dataclasses import dataclass

from prunella.records.parts import FileEntry, Record, Window


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One executed optimizer step. The four `_ns` parts add up to `end_ns - start_ns` exactly."""

    step: int
    start_ns: int
    end_ns: int
    data_ns: int
    compute_ns: int
    communication_ns: int
    checkpoint_ns: int
    loss_nats: float
    grad_norm: float
    learning_rate: float
    tokens: int
    tokens_per_s: float
    mfu: float | None
    load_balance_loss: float
    router_z_loss: float
    tokens_per_expert: tuple[tuple[int, ...], ...]
    batch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointManifest(Record):
    """Written last: a checkpoint exists when this does. `metrics` are the step records since the candidate before."""

    KIND = "checkpoint"
    VERSION = 1
    name: str
    experiment: str
    segment: int
    attempt: int
    step: int
    world_size: int
    config_digest: str
    dataset: str
    files: tuple[FileEntry, ...]
    metrics: tuple[FileEntry, ...]
    probe_loss_nats: float
    torch_version: str
    written_ns: int
    skipped: tuple[Window, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointMark(Record):
    """A statement about a checkpoint written after its verdict: promoted, revoked or pruned. One key each."""

    KIND = "checkpoint_mark"
    checkpoint: str
    reason: str
    at_ns: int
