"""Whether a checkpoint is worse than the promoted one before it. Pure, and it only describes: the policy decides.

Two bounds. The held-out loss may rise by `max_loss_rise_nats`. An accuracy may fall by `max_acc_drop_sigmas` standard errors
of the difference of two independent proportions; the questions are the same, so the true error is smaller and the bound
errs towards silence. Accuracies are compared only where task, version, shots and number of questions agree.
"""

import math

from prunella.config import EvaluationConfig
from prunella.records import EvaluationRecord, TaskScore


def find_regression(
    *, loss_nats: float, scores: tuple[TaskScore, ...], baseline: EvaluationRecord | None, bounds: EvaluationConfig
) -> str:
    """A sentence that says what fell behind `baseline`, or nothing.

    Args:
        loss_nats: held-out loss of the checkpoint, nats per token. A value that is no number is always a regression.
    """
    if not math.isfinite(loss_nats):
        return f"the held-out loss is {loss_nats}"
    if baseline is None:
        return ""
    findings = [_loss_rise(loss_nats, baseline, bounds), *_accuracy_drops(scores, baseline, bounds)]
    return "; ".join(finding for finding in findings if finding)


def _loss_rise(loss_nats: float, baseline: EvaluationRecord, bounds: EvaluationConfig) -> str:
    rise = loss_nats - baseline.heldout_loss_nats
    if not rise > bounds.max_loss_rise_nats:
        return ""
    return (
        f"the held-out loss rose by {rise:.4f} nats to {loss_nats:.4f} since {baseline.checkpoint.name} "
        f"(allowed: {bounds.max_loss_rise_nats:g}, evaluation.max_loss_rise_nats)"
    )


def _accuracy_drops(scores: tuple[TaskScore, ...], baseline: EvaluationRecord, bounds: EvaluationConfig) -> list[str]:
    before = {_identity(score): score for score in baseline.scores}
    pairs = [(before[_identity(score)], score) for score in scores if _identity(score) in before]
    return [_accuracy_drop(old, new, baseline.checkpoint.name, bounds.max_acc_drop_sigmas) for old, new in pairs]


def _identity(score: TaskScore) -> tuple[str, str, int, int]:
    return score.task, score.version, score.few_shot, score.n


def _accuracy_drop(old: TaskScore, new: TaskScore, name: str, max_sigmas: float) -> str:
    drop = old.acc - new.acc
    allowed = max_sigmas * standard_error_of_difference(old, new)
    if drop <= 0 or drop <= allowed:
        return ""
    return (
        f"accuracy on {new.task} fell from {old.acc:.3f} ({name}) to {new.acc:.3f} on {new.n} questions "
        f"(allowed: {allowed:.3f}, {max_sigmas:g} standard errors, evaluation.max_acc_drop_sigmas)"
    )


def standard_error_of_difference(old: TaskScore, new: TaskScore) -> float:
    """Standard error of `new.acc - old.acc` for independent samples: sqrt(p1 q1 / n1 + p2 q2 / n2)."""
    return math.sqrt(old.acc * (1 - old.acc) / old.n + new.acc * (1 - new.acc) / new.n)
