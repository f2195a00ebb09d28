import pytest

from prunella.errors import ConfigError
from prunella.evaluation.scores import task_score, wilson_interval


# R. G. Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3 (score without continuity correction).
@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_the_published_one(hits: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(hits / n, n) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_stays_inside_zero_and_one_and_mirrors() -> None:
    low, high = wilson_interval(1.0, 20)

    assert high == 1.0
    assert low == pytest.approx(1 - 0.1611, abs=5e-5)


@pytest.mark.parametrize(("proportion", "n"), [(0.5, 0), (1.5, 10), (-0.1, 10)])
def test_no_interval_without_a_proportion(proportion: float, n: int) -> None:
    with pytest.raises(ValueError, match="proportion"):
        wilson_interval(proportion, n)


def _results(**metrics: float) -> dict[str, object]:
    return {
        "results": {"quiz": {"alias": "quiz", **metrics}},
        "n-samples": {"quiz": {"original": 50, "effective": 40}},
        "versions": {"quiz": 2.0},
        "n-shot": {"quiz": 3},
    }


def test_a_score_keeps_all_that_makes_it_repeatable() -> None:
    score = task_score("quiz", _results(**{"acc,none": 0.5}), chance=0.25, batch_size=16, seed=7, dtype="float32")

    assert (score.task, score.version, score.acc, score.n, score.few_shot) == ("quiz", "2.0", 0.5, 40, 3)
    assert (score.batch_size, score.seed, score.dtype, score.chance) == (16, 7, "float32", 0.25)
    assert score.ci95 == wilson_interval(0.5, 40)


def test_exact_match_counts_as_accuracy_and_the_first_filter_is_taken() -> None:
    results = _results(**{"exact_match,strict": 0.25, "exact_match,flexible": 0.75})

    assert task_score("quiz", results, chance=0.0, batch_size=1, seed=0, dtype="float32").acc == 0.25


def test_a_task_without_accuracy_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"quiz.*byte_perplexity,none.*expected one of acc"):
        task_score("quiz", _results(**{"byte_perplexity,none": 3.0}), chance=0.0, batch_size=1, seed=0, dtype="float32")
