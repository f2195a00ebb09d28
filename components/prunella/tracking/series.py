"""The numbers that go to MLflow, as points of named series: pure, deterministic, each with its own stamp.

A point's stamp comes from the ledger, never from a clock, so that the same ledger gives the same points for ever; that is
what lets the mirror tell what is there already. Keys are those of `mlflow/metrics.yaml`. MLflow turns infinity into 1.8e308,
so an infinite value is left out and flagged by `stability/non_finite`; NaN is kept, and flagged as well.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prunella.records import EvaluationRecord, Part, SegmentClosed, StepRecord
from prunella.tracking.history import Attempt, History
from prunella.tracking.incidents import IncidentStory, incident_count
from prunella.tracking.time_accounting import account


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One value of a series. `at_ms` is the ledger's stamp in milliseconds, `step` the global optimizer step.

    `checkpoint` names the checkpoint that the value is a property of, if it is one.
    """

    key: str
    value: float
    at_ms: int
    step: int
    checkpoint: str | None = None


def attempt_points(attempt: Attempt) -> list[Point]:
    """Every step that the attempt executed."""
    return [point for step in attempt.steps for point in step_points(step.record)]


def experiment_points(history: History, told: Sequence[IncidentStory]) -> list[Point]:
    """The parent's series but for the figures at each close: kept steps of accepted segments, incidents, evaluations."""
    accepted = {segment.index for segment in history.segments if segment.accepted is not None}
    kept = [step.record for step in history.steps if step.is_kept and step.segment in accepted]
    points = [point for record in kept for point in step_points(record)]
    points += _incident_points(told)
    points += [point for evaluation in history.evaluations for point in evaluation_points(evaluation)]
    return points


def step_points(record: StepRecord) -> Iterator[Point]:
    """The series of one executed step. Milliseconds for times, whatever the record's unit."""
    values = {
        "train/loss": record.loss_nats,
        "train/tokens": float(record.tokens),
        "stability/grad_norm": record.grad_norm,
        "optim/learning_rate": record.learning_rate,
        "perf/tokens_per_s": record.tokens_per_s,
        "perf/mfu": record.mfu,
        "perf/step_time_ms": (record.end_ns - record.start_ns) / 1e6,
        "perf/data_wait_ms": record.data_ns / 1e6,
        "perf/compute_ms": record.compute_ns / 1e6,
        "perf/communication_ms": record.communication_ns / 1e6,
        "perf/checkpoint_stall_ms": record.checkpoint_ns / 1e6,
        "moe/load_balance": record.load_balance_loss,
        "moe/router_z": record.router_z_loss,
        "moe/max_load_ratio": max_load_ratio(record),
        "moe/dead_experts": dead_experts(record),
    }
    at_ms = record.end_ns // 1_000_000
    known = {key: value for key, value in values.items() if value is not None}
    if not all(math.isfinite(value) for value in known.values()):
        yield Point(key="stability/non_finite", value=1.0, at_ms=at_ms, step=record.step)
    for key, value in known.items():
        if not math.isinf(value):
            yield Point(key=key, value=value, at_ms=at_ms, step=record.step)


def max_load_ratio(record: StepRecord) -> float | None:
    """Tokens of the busiest expert over the mean of its layer, the worst layer; None without experts. 1 is balanced.

    MaxVio (arXiv 2408.15664) is this ratio minus 1.
    """
    layers = [counts for counts in record.tokens_per_expert if sum(counts)]
    return max((max(counts) * len(counts) / sum(counts) for counts in layers), default=None)


def dead_experts(record: StepRecord) -> float | None:
    """Experts, over all layers, that no token of the global batch was sent to; None without experts."""
    layers = [counts for counts in record.tokens_per_expert if sum(counts)]
    return float(sum(counts.count(0) for counts in layers)) if layers else None


def _incident_points(told: Sequence[IncidentStory]) -> list[Point]:
    """Counters at the step after which the fault struck, so that they chart beside the loss."""
    points: list[Point] = []
    by_cause: dict[str, int] = {}
    lost_steps = 0
    for story in told:
        cause = story.incident.diagnosis.cause.value
        by_cause[cause] = by_cause.get(cause, 0) + 1
        lost_steps += story.incident.lost_steps
        values = {
            "heal/incidents": float(sum(by_cause.values())),
            f"heal/cause/{cause}": float(by_cause[cause]),
            "heal/lost_steps": float(lost_steps),
        }
        if story.recovery_ns is not None:
            values["heal/recovery_s"] = sum(story.recovery_ns.values()) / 1e9
        at_ms = story.incident.decided_ns // 1_000_000
        points += [Point(key=key, value=value, at_ms=at_ms, step=story.after_step) for key, value in values.items()]
    return points


def evaluation_points(evaluation: EvaluationRecord) -> list[Point]:
    """What one evaluation found, as properties of its checkpoint."""
    values = {
        "eval/heldout_loss_nats": evaluation.heldout_loss_nats,
        "eval/bits_per_byte": evaluation.bits_per_byte,
        **{f"eval/{score.task}/acc": score.acc for score in evaluation.scores},
    }
    at_ms, checkpoint = evaluation.ended_ns // 1_000_000, evaluation.checkpoint
    return [
        Point(key=key, value=value, at_ms=at_ms, step=checkpoint.step, checkpoint=checkpoint.name)
        for key, value in values.items()
        if math.isfinite(value)
    ]


#: Series that have a point at every close.
CLOSE_KEYS = (
    "final/steps",
    "final/tokens",
    "final/attempts",
    "final/incidents",
    "final/ettr",
    "final/elapsed_s",
    *(f"time/{part.value}_s" for part in Part),
)


def close_stamp(history: History, close: SegmentClosed) -> tuple[int, int]:
    """Stamp, in milliseconds, and step of all that is said of a close."""
    step = close.checkpoint.step if close.checkpoint is not None else close.segment * history.config.steps_per_segment
    return close.closed_ns // 1_000_000, step


def close_points(history: History, close: SegmentClosed) -> list[Point]:
    """The experiment's figures as of one close: the table of runs shows the newest, the charts their course.

    Each costs an account of all time before it. What may be left out comes first, so that a list whose `CLOSE_KEYS` have
    arrived is whole.
    """
    seen = history.until(close.closed_ns)
    kept = seen.kept_steps
    time = account(seen, now_ns=close.closed_ns)
    figures = (
        len(kept),
        sum(record.tokens for record in kept),
        len(seen.attempts),
        incident_count(seen),
        time.ettr,
        time.elapsed_ns / 1e9,
        *(time.parts_ns[part] / 1e9 for part in Part),
    )
    values: dict[str, float] = {"final/loss": kept[-1].loss_nats} if kept and math.isfinite(kept[-1].loss_nats) else {}
    values |= {key: float(figure) for key, figure in zip(CLOSE_KEYS, figures, strict=True)}
    at_ms, step = close_stamp(history, close)
    return [Point(key=key, value=value, at_ms=at_ms, step=step) for key, value in values.items()]
