"""The numbers that go to MLflow: what a step says, and what is said of values that no chart can hold."""

import dataclasses
import math

import pytest

from prunella.records import StepRecord
from prunella.tracking.series import Point, dead_experts, max_load_ratio, step_points


@pytest.fixture
def step() -> StepRecord:
    """Step 5 of a model with two expert layers, 10 ms long."""
    return StepRecord(
        step=5,
        start_ns=1_000_000_000,
        end_ns=1_010_000_000,
        data_ns=1_000_000,
        compute_ns=6_000_000,
        communication_ns=2_000_000,
        checkpoint_ns=1_000_000,
        loss_nats=7.5,
        grad_norm=1.25,
        learning_rate=3e-3,
        tokens=16,
        tokens_per_s=1600.0,
        mfu=None,
        load_balance_loss=1.1,
        router_z_loss=0.3,
        tokens_per_expert=((8, 8, 16, 0), (8, 8, 8, 8)),
        batch=4,
    )


def by_key(points: list[Point]) -> dict[str, float]:
    return {point.key: point.value for point in points}


def test_a_steps_parts_add_up_to_its_time(step: StepRecord) -> None:
    values = by_key(list(step_points(step)))

    parts = ("perf/data_wait_ms", "perf/compute_ms", "perf/communication_ms", "perf/checkpoint_stall_ms")
    assert sum(values[part] for part in parts) == values["perf/step_time_ms"] == 10.0


def test_points_carry_the_ledgers_stamp_and_the_global_step(step: StepRecord) -> None:
    assert {(point.at_ms, point.step) for point in step_points(step)} == {(1010, 5)}


def test_what_does_not_apply_is_left_out(step: StepRecord) -> None:
    dense = dataclasses.replace(step, tokens_per_expert=())

    keys = by_key(list(step_points(dense)))

    assert not {"perf/mfu", "moe/max_load_ratio", "moe/dead_experts", "stability/non_finite"} & keys.keys()


def test_the_worst_layer_and_all_dead_experts_are_reported(step: StepRecord) -> None:
    assert max_load_ratio(step) == 2.0  # 16 tokens where 8 are the mean: MaxVio 1
    assert dead_experts(step) == 1.0


@pytest.mark.parametrize(("grad_norm", "is_kept"), [(math.inf, False), (-math.inf, False), (math.nan, True)])
def test_a_value_that_is_not_finite_raises_the_flag(step: StepRecord, grad_norm: float, is_kept: bool) -> None:
    values = by_key(list(step_points(dataclasses.replace(step, grad_norm=grad_norm))))

    assert values["stability/non_finite"] == 1.0
    assert ("stability/grad_norm" in values) == is_kept
