"""The learning rate of a step: a pure function of the step and the length of the experiment, so that cuts agree."""

import math

from prunella.config import OptimConfig, Schedule


def learning_rate(optim: OptimConfig, *, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step` (1 to `total_steps`).

    Linear warm-up over `warmup_steps` (at most half of the experiment), then either flat with a linear decay over the last
    `decay_fraction` (WSD; MiniCPM, arXiv 2404.06395) or half a cosine, to `min_learning_rate_ratio` at the last step.
    """
    warmup = min(optim.warmup_steps, total_steps // 2)
    if step <= warmup:
        return optim.learning_rate * step / warmup
    if optim.schedule is Schedule.COSINE:
        return optim.learning_rate * _cosine(optim, (step - warmup) / (total_steps - warmup))
    return optim.learning_rate * _stable_decay(optim, step, total_steps, warmup)


def _cosine(optim: OptimConfig, progress: float) -> float:
    floor = optim.min_learning_rate_ratio
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def _stable_decay(optim: OptimConfig, step: int, total_steps: int, warmup: int) -> float:
    decay_steps = min(round(optim.decay_fraction * total_steps), total_steps - warmup)
    into_decay = step - (total_steps - decay_steps)
    if into_decay <= 0:
        return 1.0
    return 1.0 - (1.0 - optim.min_learning_rate_ratio) * min(1.0, into_decay / decay_steps)
