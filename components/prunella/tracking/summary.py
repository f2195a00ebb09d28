"""The state of an experiment in one document: what `summary.json` holds and `prunella status --json` prints.

A pure function of the history; it counts what records say and never what a tracking server or a scheduler believes.
"""

from dataclasses import dataclass
from typing import Any

from prunella import codec
from prunella.records import Outcome, Part
from prunella.tracking.history import History
from prunella.tracking.incidents import IncidentStory, stories
from prunella.tracking.time_accounting import account


@dataclass(frozen=True, kw_only=True, slots=True)
class IncidentSummary:
    """One incident. `recovery_s` is empty while nothing has recovered from it."""

    cause: str
    culprit: str | None
    decision: str
    lost_steps: int
    recovery_s: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointCounts:
    """Judged checkpoints. One that passed and was revoked later counts as rejected."""

    verified: int
    rejected: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Accuracy of the newest evaluated checkpoint on one task. `ci95` is low, high."""

    acc: float
    n: int
    ci95: tuple[float, ...]
    chance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Fields of `summary.json`. `segments` counts accepted ones, `steps` and `tokens` kept ones; losses are None before any.

    `restarts` is 0: ranks are not restarted in place yet, so no record tells of any.
    """

    state: str
    segments: int
    attempts: int
    restarts: int
    steps: int
    tokens: int
    first_loss_nats: float | None
    final_loss_nats: float | None
    incidents: tuple[IncidentSummary, ...]
    checkpoints: CheckpointCounts
    accuracy: dict[str, Accuracy]
    time_s: dict[str, float]
    ettr: float
    faults_fired: tuple[str, ...]
    mlflow_run_id: str | None
    airflow_dag_runs: tuple[str, ...]


def summary(history: History, *, mlflow_run_id: str | None, now_ns: int) -> Summary:
    """The document, as of `now_ns` where a run is open, else as of the last close."""
    kept = history.kept_steps
    time = account(history, now_ns=now_ns)
    return Summary(
        state=state(history),
        segments=sum(segment.accepted is not None for segment in history.segments),
        attempts=len(history.attempts),
        restarts=0,
        steps=len(kept),
        tokens=sum(record.tokens for record in kept),
        first_loss_nats=kept[0].loss_nats if kept else None,
        final_loss_nats=kept[-1].loss_nats if kept else None,
        incidents=tuple(_incident(story) for story in stories(history)),
        checkpoints=CheckpointCounts(
            verified=sum(checkpoint.is_verified for checkpoint in history.checkpoints),
            rejected=sum(checkpoint.is_rejected for checkpoint in history.checkpoints),
        ),
        accuracy=_accuracy(history),
        time_s={"elapsed": time.elapsed_ns / 1e9} | {part.value: time.parts_ns[part] / 1e9 for part in Part},
        ettr=time.ettr,
        faults_fired=tuple(firing.spec for firing in history.firings),
        mlflow_run_id=mlflow_run_id,
        airflow_dag_runs=tuple(run.run_id for run, _ in history.runs),
    )


def state(history: History) -> str:
    """`complete`, `failed`, `stopped`, or `running`: everything else, also between two segments.

    A stop that ended the last run keeps the experiment `stopped` until the next run opens: taking it back starts nothing.
    """
    accepted = [segment.index for segment in history.segments if segment.accepted is not None]
    if len(accepted) >= history.config.segments:
        return "complete"
    last = history.runs[-1][1] if history.runs else None
    if last is None:
        return "running"
    if last.outcome is Outcome.FAILED:
        return "failed"
    return "stopped" if last.outcome is Outcome.STOPPED or history.is_stop_requested else "running"


def _incident(story: IncidentStory) -> IncidentSummary:
    return IncidentSummary(
        cause=story.incident.diagnosis.cause.value,
        culprit=story.culprit,
        decision=story.incident.action.value,
        lost_steps=story.incident.lost_steps,
        recovery_s=story.recovery_s,
    )


def _accuracy(history: History) -> dict[str, Accuracy]:
    newest = history.evaluations[-1:]
    return {
        score.task: Accuracy(acc=score.acc, n=score.n, ci95=score.ci95, chance=score.chance)
        for evaluation in newest
        for score in evaluation.scores
    }


def document(found: Summary) -> dict[str, Any]:
    """Its JSON form, with exactly the fields above."""
    fields: dict[str, Any] = codec.encode(found)
    return fields
