"""The configuration of an experiment: every knob, its default, its unit, and where the default comes from.

A configuration is built by a recipe (`recipes.py`) or read from `experiment.toml`, overridden by the form, overridden by
`--set key=value`; then it is frozen, digested and recorded. Nothing reads the environment here. A bad setting is refused
here, once, with advice; the rest of the code trusts what it gets.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import urlsplit

from prunella.errors import ConfigError

#: `grouped_mm` wants row strides in multiples of 16 bytes, 8 elements of bfloat16. Source: its own error, torch 2.13, 2026-11.
WIDTH_MULTIPLE = 8


class RouterScore(StrEnum):
    """How router logits become gate values."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


class Schedule(StrEnum):
    """Shape of the learning rate over the experiment."""

    WARMUP_STABLE_DECAY = "warmup_stable_decay"
    COSINE = "cosine"


class Precision(StrEnum):
    """Arithmetic of the forward and backward pass; weights and moments are always float32."""

    FP32 = "fp32"
    BF16 = "bf16"


class OnBadInput(StrEnum):
    """What data prep does with an input it cannot read."""

    ERROR = "error"
    QUARANTINE = "quarantine"


class OnSaveFailure(StrEnum):
    """What training does when a candidate cannot be saved (FIELD 6, R13)."""

    FAIL = "fail"
    RETRY = "retry"
    WARN = "warn"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Shape of the decoder-only transformer. Dimensions are counts of elements."""

    vocab_size: int = 4096
    seq_len: int = 128
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 32
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    qk_norm: bool = True
    tie_embeddings: bool = False
    init_std: float = 0.02
    #: Scale of the output projections' init: same std everywhere (SIGMA) or divided by sqrt(2 n_layers) (Megatron). FIELD 5.
    scale_residual_init: bool = True
    #: Feed-forward width of dense layers; the first `n_dense_layers` layers are dense, all of them when n_experts is 0.
    ffn_dim: int = 384
    n_dense_layers: int = 0
    n_experts: int = 8
    expert_ffn_dim: int = 128
    n_shared_experts: int = 0
    #: Active experts: one entry for all layers, or one a layer.
    top_k: tuple[int, ...] = (2,)
    router_score: RouterScore = RouterScore.SOFTMAX
    #: Weight of the load-balance loss. Source: Switch Transformer (arXiv 2101.03961) uses 1e-2; 17B-A2B of FIELD 5, 1e-3.
    load_balance_coef: float = 1e-2
    #: Weight of the router z-loss. Source: ST-MoE (arXiv 2202.08906), 1e-3.
    router_z_coef: float = 1e-3
    #: Loss-free balancing: a bias on the scores used for selection only, moved by `router_bias_rate` a step towards balance.
    router_bias: bool = False
    #: Source: DeepSeek-V3 (arXiv 2412.19437), 1e-3.
    router_bias_rate: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim"):
            _require(getattr(self, name) >= 1, f"model.{name}", "at least 1", getattr(self, name))
        _require(self.n_heads % self.n_kv_heads == 0, "model.n_heads", "a multiple of model.n_kv_heads", self.n_heads)
        _require(self.head_dim % 2 == 0, "model.head_dim", "an even number (rotary embedding pairs dimensions)", self.head_dim)
        _require(
            self.vocab_size >= 257, "model.vocab_size", "at least 257 (256 bytes and the end-of-text token)", self.vocab_size
        )
        _require(self.seq_len >= 2, "model.seq_len", "at least 2", self.seq_len)
        _require(len(self.top_k) in (1, self.n_layers), "model.top_k", "one entry, or one a layer", list(self.top_k))
        _check(self, "model", least=0, names=("n_experts", "n_dense_layers", "n_shared_experts"))
        _check(self, "model", least=1, names=("ffn_dim", "expert_ffn_dim"))
        _check(self, "model", above=0, names=("rope_theta", "norm_eps", "init_std"))
        _check(self, "model", least=0, names=("load_balance_coef", "router_z_coef", "router_bias_rate"))
        if self.n_experts:
            for name in ("d_model", "expert_ffn_dim"):
                multiple = f"a multiple of {WIDTH_MULTIPLE} (grouped_mm aligns rows to 16 bytes)"
                _require(getattr(self, name) % WIDTH_MULTIPLE == 0, f"model.{name}", multiple, getattr(self, name))
            bad = [k for k in self.top_k if not 1 <= k <= self.n_experts]
            _require(not bad, "model.top_k", f"between 1 and model.n_experts = {self.n_experts}", list(self.top_k))

    def is_moe_layer(self, layer: int) -> bool:
        """Whether layer `layer` (from 0) routes to experts."""
        return self.n_experts > 0 and layer >= self.n_dense_layers

    def top_k_at(self, layer: int) -> int:
        """Active experts of a layer: the one source of truth for dispatch, FLOPs and count checks."""
        return self.top_k[layer if len(self.top_k) > 1 else 0]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where text comes from and how it becomes tokens."""

    #: Files, globs, folders; `builtin:stdlib` is the source text of the Python standard library.
    inputs: tuple[str, ...] = ("builtin:stdlib",)
    jsonl_field: str = "text"
    parquet_column: str = "text"
    #: A `tokenizer.json` to load; trained on the corpus when None.
    tokenizer: str | None = None
    #: Bytes of text the tokenizer is trained on, at most. Source: own choice 2026-11, BPE merges saturate well before.
    tokenizer_train_bytes: int = 4_000_000
    heldout_fraction: float = 0.02
    #: Bytes of text taken from the corpus, in document order; None takes all.
    max_bytes: int | None = None
    shard_tokens: int = 1_048_576
    workers: int = 2
    on_bad_input: OnBadInput = OnBadInput.QUARANTINE

    def __post_init__(self) -> None:
        _require(bool(self.inputs), "data.inputs", "at least one file, glob or folder", list(self.inputs))
        is_named = all(name.strip() for name in self.inputs)
        _require(is_named, "data.inputs", "the name of a file, glob or folder in each entry", list(self.inputs))
        _require(0.0 < self.heldout_fraction < 0.5, "data.heldout_fraction", "between 0 and 0.5", self.heldout_fraction)
        _require(self.shard_tokens >= 1024, "data.shard_tokens", "at least 1024", self.shard_tokens)
        _check(self, "data", least=1, names=("workers", "tokenizer_train_bytes", "max_bytes"))


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW and its schedule, over the whole experiment (`segments x steps_per_segment`)."""

    learning_rate: float = 3e-3
    min_learning_rate_ratio: float = 0.1
    betas: tuple[float, ...] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip_norm: float = 1.0
    schedule: Schedule = Schedule.WARMUP_STABLE_DECAY
    warmup_steps: int = 10
    #: Part of the experiment over which WSD decays, at its end. Source: MiniCPM (arXiv 2404.06395), about 0.1; 0.2 if short.
    decay_fraction: float = 0.2
    precision: Precision = Precision.FP32

    def __post_init__(self) -> None:
        _check(self, "optim", above=0, names=("learning_rate", "grad_clip_norm"))
        parts = ("decay_fraction", "min_learning_rate_ratio")
        _check(self, "optim", least=0, names=("eps", "weight_decay", "warmup_steps", *parts))
        for name in parts:
            _require(getattr(self, name) <= 1, f"optim.{name}", "at most 1", getattr(self, name))
        are_betas = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _require(are_betas, "optim.betas", "two numbers, from 0 to less than 1", list(self.betas))


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchConfig:
    """Sequences an optimizer step sees. The global batch is fixed by the recipe, whatever the world size."""

    global_sequences: int = 16
    micro_sequences: int = 8

    def __post_init__(self) -> None:
        _require(self.global_sequences >= 1, "batch.global_sequences", "at least 1", self.global_sequences)
        _require(self.micro_sequences >= 1, "batch.micro_sequences", "at least 1", self.micro_sequences)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How the model is spread over ranks."""

    #: Ranks that share the experts of a layer; 0 takes the greatest common divisor of world size and n_experts.
    expert_parallel: int = 0
    #: CPU threads of a rank; recorded, because another value rounds differently (DESIGN 4.11).
    threads_per_rank: int = 1

    def __post_init__(self) -> None:
        _check(self, "parallel", least=0, names=("expert_parallel",))
        _check(self, "parallel", least=1, names=("threads_per_rank",))


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When candidates are written, how many are kept, and how strictly they are judged."""

    interval_steps: int = 10
    #: Executed steps that may be without a durable candidate before training waits for the save; None means interval_steps.
    max_unsaved_steps: int | None = None
    on_save_failure: OnSaveFailure = OnSaveFailure.FAIL
    keep_last: int = 3
    #: Every M-th verified checkpoint is kept for ever; 0 keeps none beyond keep_last.
    keep_every: int = 0
    #: Where the root is a bucket, a machine keeps what it wrote of so many of the newest candidates, so that validation,
    #: evaluation and resume need not download it; PRUNELLA_CACHE_BYTES bounds the size. 0 keeps none: validation then reads
    #: what the bucket holds. Source: own choice 2026-11: the newest, and the one that is resumed from when that is rejected.
    keep_local: int = 2
    #: Relative difference allowed between the probe loss at the save and in validation, which runs at another world size.
    #: Source: own measurement 2026-11, see DECISIONS "probe tolerance"; fp32 sums in another order differ by about 1e-6.
    probe_loss_rtol: float = 1e-4
    #: As above with bf16 arithmetic, 8 bits of mantissa.
    probe_loss_rtol_bf16: float = 2e-2
    #: Largest factor between the parameter norm of a candidate and of the verified checkpoint before it.
    #: Source: own choice 2026-11; training moves the norm by a few percent an interval, a flipped exponent bit by 2^64.
    max_norm_ratio: float = 2.0

    def __post_init__(self) -> None:
        _require(self.interval_steps >= 1, "checkpoint.interval_steps", "at least 1", self.interval_steps)
        _require(
            self.keep_last >= 1,
            "checkpoint.keep_last",
            "at least 1: the last verified checkpoint is never deleted",
            self.keep_last,
        )
        _check(self, "checkpoint", least=0, names=("keep_local", "keep_every"))
        _check(self, "checkpoint", least=1, names=("max_unsaved_steps",))
        _check(self, "checkpoint", above=0, names=("probe_loss_rtol", "probe_loss_rtol_bf16"))
        _check(self, "checkpoint", above=1, names=("max_norm_ratio",))


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """What a node must show before it may train."""

    #: Side of the square matrices multiplied. 256 keeps a CPU node's gate under a second.
    matrix_size: int = 256
    #: Largest error of a product or reduction against float64, in units in the last place of the result's magnitude.
    #: Source: own measurement 2026-11 (AMD EPYC, torch 2.13, 20 seeds at each of N = 128, 256, 512): products at most 6.9,
    #: reductions at most 1.7. 64 leaves a factor of 9 to other kernels; the fault `bad-node` makes 4.2 million.
    max_error_ulps: float = 64.0
    memory_mib: int = 16
    min_free_disk_mib: int = 64
    max_clock_skew_ms: float = 1000.0
    #: A member that has not arrived after this long is `unknown`. Source: own choice, about 10 times a cold torch import.
    fabric_timeout_s: float = 60.0
    node_timeout_s: float = 120.0
    #: Exclusions of nodes allowed in `exclusion_window_s` before a person is asked (circuit breaker, FIELD 2).
    max_exclusions: int = 4
    exclusion_window_s: float = 3600.0

    def __post_init__(self) -> None:
        _check(self, "gate", least=1, names=("matrix_size", "memory_mib"))
        _check(self, "gate", above=0, names=("max_error_ulps", "max_clock_skew_ms", "fabric_timeout_s", "node_timeout_s"))
        _check(self, "gate", least=0, names=("min_free_disk_mib", "max_exclusions", "exclusion_window_s"))


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """What is measured after each promotion."""

    heldout_sequences: int = 64
    #: Offline multiple-choice questions made from held-out documents.
    questions: int = 100
    choices: int = 4
    few_shot: int = 0
    batch_size: int = 16
    #: Names of further lm-evaluation-harness tasks; they need their data on disk.
    tasks: tuple[str, ...] = ()
    #: Rise of the held-out loss over the promoted checkpoint before it that counts as a regression.
    #: Source: own choice 2026-11: a healthy demo run falls by more than 0.1 nats a segment and its noise is about 0.01.
    max_loss_rise_nats: float = 0.1
    #: Fall of a task's accuracy that counts as one, in standard errors of the difference (two-sided 99.7%).
    max_acc_drop_sigmas: float = 3.0
    sample_tokens: int = 64

    def __post_init__(self) -> None:
        _check(self, "evaluation", least=0, names=("questions", "few_shot", "sample_tokens"))
        _check(self, "evaluation", least=0, names=("max_loss_rise_nats", "max_acc_drop_sigmas"))
        _check(self, "evaluation", least=1, names=("heldout_sequences", "batch_size"))
        _check(self, "evaluation", least=2, names=("choices",))


class Unattended(StrEnum):
    """What `ask` becomes where nobody can answer."""

    STOP = "stop"
    RETRY = "retry_same_nodes"


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyConfig:
    """Budgets and time-outs of the healing loop. Budgets count attempts since the last progress, by class of failure."""

    infrastructure_budget: int = 8
    workload_budget: int = 4
    unknown_budget: int = 3
    #: Attempts of one segment, whatever their cause.
    ceiling: int = 24
    #: A second failure of the same node in one segment replaces it.
    failures_before_replace: int = 2
    unattended: Unattended = Unattended.STOP

    def __post_init__(self) -> None:
        _check(self, "policy", least=0, names=("infrastructure_budget", "workload_budget", "unknown_budget"))
        _check(self, "policy", least=1, names=("ceiling", "failures_before_replace"))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """How a segment is watched while it runs."""

    #: A rank is hung when it makes no progress for max(floor, factor x median step time). Source: own choice 2026-11:
    #: the slowest healthy step seen in the demo was 4 times the median; 10 leaves room, the floor absorbs swapping.
    hang_factor: float = 10.0
    hang_floor_s: float = 15.0
    #: Until a rank has finished its first step: start of the process group, load, first step.
    startup_timeout_s: float = 180.0
    #: From the start of an attempt's training: then its ranks finish their step, or their first one, save and end.
    wall_clock_limit_s: float | None = None
    #: What ranks that are to end have for that before SIGKILL: from a signal on, whose sender waits for 30 s; where the clock
    #: asks, from their first finished step on.
    grace_s: float = 25.0
    fence_poll_s: float = 5.0

    def __post_init__(self) -> None:
        _check(self, "training", least=1, names=("hang_factor",))
        _check(self, "training", least=0, names=("wall_clock_limit_s",))  # 0: one step an attempt
        _check(self, "training", above=0, names=("hang_floor_s", "startup_timeout_s", "grace_s", "fence_poll_s"))


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageConfig:
    """How long a storage call may be retried before it counts as failed."""

    retry_s: float = 60.0
    first_delay_s: float = 0.1
    max_delay_s: float = 2.0

    def __post_init__(self) -> None:
        _check(self, "storage", least=0, names=("retry_s", "first_delay_s", "max_delay_s"))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Where runs are mirrored. `uri` None means a SQLite store beside the ledger (folder roots)."""

    uri: str | None = None
    experiment: str = "prunella"
    #: The mirror gives up after this long; the next close catches up.
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        _check(self, "tracking", above=0, names=("timeout_s",))
        if self.uri is not None and "@" in _network_location(self.uri):
            raise ConfigError(
                "tracking.uri: expected an address without user and password, found one with them (not shown): a configuration "
                "is recorded for ever; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, which never are"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A whole experiment. `schedule` is `continuous`, `manual` or `cron:EXPR`."""

    recipe: str = "tiny_moe"
    seed: int = 7
    segments: int = 3
    steps_per_segment: int = 40
    nodes: int = 2
    fleet: str | None = None
    schedule: str = "manual"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**63, "seed", "at least 0 and less than 2**63", self.seed)
        _require(self.segments >= 1, "segments", "at least 1", self.segments)
        _require(self.steps_per_segment >= 1, "steps_per_segment", "at least 1", self.steps_per_segment)
        _require(self.nodes >= 1, "nodes", "at least 1", self.nodes)
        is_known = self.schedule in ("manual", "continuous") or self.schedule.startswith("cron:")
        _require(is_known, "schedule", "manual, continuous or cron:EXPR", self.schedule)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole experiment."""
        return self.segments * self.steps_per_segment


def _network_location(uri: str) -> str:
    """Host of an address, with port, user and password. Of a ValueError nothing is kept: it may quote the password."""
    try:
        return urlsplit(uri).netloc
    except ValueError:
        raise ConfigError(
            "tracking.uri: expected an address such as http://HOST:PORT, found one that cannot be read (not shown); correct it"
        ) from None


def _require(is_met: bool, key: str, expected: str, found: object) -> None:
    if not is_met:
        raise ConfigError(f"{key}: expected {expected}, found {found!r}")


def _check(table: object, name: str, *, names: tuple[str, ...], least: float = -math.inf, above: float = -math.inf) -> None:
    """Numbers of one table that are bounded alike: finite, at least `least`, more than `above`. None does not apply."""
    expected = f"at least {least:g}" if math.isfinite(least) else f"more than {above:g}"
    for key in names:
        found = getattr(table, key)
        is_met = found is None or (math.isfinite(found) and found >= least and found > above)
        _require(is_met, f"{name}.{key}", expected, found)
