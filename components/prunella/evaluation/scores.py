"""From the harness's results to what the ledger stores: accuracy, interval, chance, and what makes it repeatable (R16)."""

import math
from collections.abc import Mapping
from typing import Any

from prunella.errors import ConfigError
from prunella.records import TaskScore

#: Two-sided 95% quantile of the standard normal distribution.
_Z95 = 1.959963984540054
#: Metrics of the harness that are a mean of zeros and ones, in the order in which they are taken as a task's accuracy.
_PROPORTIONS = ("acc", "exact_match")


def wilson_interval(proportion: float, n: int) -> tuple[float, float]:
    """95% confidence interval of a proportion seen on `n` trials.

    Source: E. B. Wilson, JASA 22 (1927) 209; unlike the normal interval it stays inside [0, 1] and holds at 0 and 1.

    Raises:
        ValueError: no trials, or not a proportion.
    """
    if n < 1 or not 0.0 <= proportion <= 1.0:
        raise ValueError(f"expected a proportion in [0, 1] on at least one trial, found {proportion} on {n}")
    scale = 1 + _Z95**2 / n
    centre = (proportion + _Z95**2 / (2 * n)) / scale
    half = _Z95 / scale * math.sqrt(proportion * (1 - proportion) / n + _Z95**2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def task_score(task: str, results: Mapping[str, Any], *, chance: float, batch_size: int, seed: int, dtype: str) -> TaskScore:
    """The score of one task out of what `lm_eval.evaluator.evaluate` returned.

    Raises:
        ConfigError: the task has no accuracy among its metrics.
    """
    acc = _accuracy(task, results["results"][task])
    n = int(results["n-samples"][task]["effective"])
    return TaskScore(
        task=task,
        version=str(results["versions"].get(task)),
        acc=acc,
        n=n,
        ci95=wilson_interval(acc, n),
        chance=chance,
        few_shot=int(results["n-shot"][task] or 0),
        batch_size=batch_size,
        seed=seed,
        dtype=dtype,
    )


def _accuracy(task: str, metrics: Mapping[str, Any]) -> float:
    # The harness names a metric "<metric>,<filter>"; the first filter is the one its task puts first.
    for wanted in _PROPORTIONS:
        for name, value in metrics.items():
            if name.split(",")[0] == wanted:
                return float(value)
    known = ", ".join(sorted(name for name in metrics if "," in name))
    raise ConfigError(
        f"evaluation.tasks: task {task!r} measures {known}, expected one of {', '.join(_PROPORTIONS)}; take it out of the list"
    )
