import pytest

from prunella.config import OptimConfig, Schedule
from prunella.training_segment.schedule import learning_rate

WSD = OptimConfig(learning_rate=1.0, min_learning_rate_ratio=0.1, warmup_steps=10, decay_fraction=0.2)
COSINE = OptimConfig(learning_rate=1.0, min_learning_rate_ratio=0.1, warmup_steps=10, schedule=Schedule.COSINE)


@pytest.mark.parametrize(
    ("optim", "step", "expected"),
    [
        (WSD, 1, 0.1),
        (WSD, 10, 1.0),
        (WSD, 80, 1.0),
        (WSD, 90, 0.55),
        (WSD, 100, 0.1),
        (COSINE, 5, 0.5),
        (COSINE, 55, 0.55),
        (COSINE, 100, 0.1),
    ],
)
def test_learning_rate_follows_its_shape(optim: OptimConfig, step: int, expected: float) -> None:
    assert learning_rate(optim, step=step, total_steps=100) == pytest.approx(expected)


@pytest.mark.parametrize("total_steps", [1, 2, 3, 8])
@pytest.mark.parametrize("optim", [WSD, COSINE])
def test_experiments_shorter_than_the_warm_up_still_get_a_positive_rate(optim: OptimConfig, total_steps: int) -> None:
    rates = [learning_rate(optim, step=step, total_steps=total_steps) for step in range(1, total_steps + 1)]

    assert all(0.0 < rate <= 1.0 for rate in rates)
