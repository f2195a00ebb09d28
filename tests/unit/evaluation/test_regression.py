import math

import pytest

from prunella.config import EvaluationConfig
from prunella.evaluation.regression import find_regression, standard_error_of_difference
from prunella.records import CheckpointRef, EvaluationRecord, Stage, TaskScore, Verdict

BOUNDS = EvaluationConfig(max_loss_rise_nats=0.1, max_acc_drop_sigmas=3.0)


def _score(acc: float, *, n: int = 100, task: str = "quiz", version: str = "1.0", few_shot: int = 0) -> TaskScore:
    return TaskScore(
        task=task,
        version=version,
        acc=acc,
        n=n,
        ci95=(0.0, 1.0),
        chance=0.25,
        few_shot=few_shot,
        batch_size=16,
        seed=7,
        dtype="float32",
    )


def _baseline(loss_nats: float, *scores: TaskScore) -> EvaluationRecord:
    return EvaluationRecord(
        stage=Stage.EVALUATION,
        verdict=Verdict.ACCEPTED,
        started_ns=0,
        ended_ns=1,
        checkpoint=CheckpointRef(name="0000-00-0003", step=40, manifest_sha256="0" * 64),
        digest="sha256:0",
        heldout_loss_nats=loss_nats,
        bits_per_byte=2.0,
        heldout_tokens=100,
        scores=scores,
        is_regression=False,
    )


# Standard error at 0.6 and 0.4 on 100 questions each: sqrt(0.24/100 + 0.24/100) = 0.0693; three of them are 0.2078.
@pytest.mark.parametrize(
    ("loss_nats", "acc", "words"),
    [
        pytest.param(3.9, 0.7, [], id="better"),
        pytest.param(4.0, 0.6, [], id="equal"),
        pytest.param(4.09, 0.6, [], id="loss within its bound"),
        pytest.param(4.11, 0.6, ["held-out loss rose by 0.1100 nats", "0000-00-0003", "max_loss_rise_nats"], id="loss"),
        pytest.param(4.0, 0.4, [], id="accuracy within its bound"),
        pytest.param(4.0, 0.38, ["accuracy on quiz fell from 0.600", "to 0.380", "max_acc_drop_sigmas"], id="accuracy"),
        pytest.param(5.0, 0.1, ["held-out loss rose", "; ", "accuracy on quiz fell"], id="both"),
        pytest.param(math.nan, 0.6, ["held-out loss is nan"], id="not a number"),
        pytest.param(math.inf, 0.6, ["held-out loss is inf"], id="infinite"),
    ],
)
def test_a_regression_is_what_passes_a_bound(loss_nats: float, acc: float, words: list[str]) -> None:
    baseline = _baseline(4.0, _score(0.6))

    found = find_regression(loss_nats=loss_nats, scores=(_score(acc),), baseline=baseline, bounds=BOUNDS)

    assert bool(found) == bool(words)
    assert all(word in found for word in words)


def test_the_first_evaluation_cannot_fall_behind_but_must_be_a_number() -> None:
    assert find_regression(loss_nats=9.0, scores=(), baseline=None, bounds=BOUNDS) == ""
    assert find_regression(loss_nats=math.nan, scores=(), baseline=None, bounds=BOUNDS) == "the held-out loss is nan"


@pytest.mark.parametrize("changes", [{"task": "other"}, {"version": "2.0"}, {"few_shot": 5}, {"n": 99}])
def test_scores_that_measure_different_things_are_not_compared(changes: dict[str, object]) -> None:
    now = _score(0.0, **changes)  # type: ignore[arg-type]

    assert find_regression(loss_nats=4.0, scores=(now,), baseline=_baseline(4.0, _score(1.0)), bounds=BOUNDS) == ""


def test_certainty_makes_any_drop_a_regression() -> None:
    found = find_regression(loss_nats=4.0, scores=(_score(0.0),), baseline=_baseline(4.0, _score(1.0)), bounds=BOUNDS)

    assert "fell from 1.000" in found


def test_the_standard_error_of_a_difference_is_that_of_two_independent_proportions() -> None:
    assert standard_error_of_difference(_score(0.6), _score(0.4)) == pytest.approx(math.sqrt(0.0048))
