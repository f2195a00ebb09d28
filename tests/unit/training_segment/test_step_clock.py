import time

from prunella.training_segment.step_clock import StepClock, now_ns


def test_parts_add_up_exactly_and_steps_touch() -> None:
    clock = StepClock(now_ns())
    with clock.measure("data"):
        sum(range(10_000))
    clock.add_communication(5_000)

    first = clock.finish(now_ns())
    second = clock.finish(now_ns())

    assert first.data_ns + first.compute_ns + first.communication_ns + first.checkpoint_ns == first.end_ns - first.start_ns
    assert first.data_ns > 0
    assert first.communication_ns == 5_000
    assert second.start_ns == first.end_ns
    assert second.data_ns == second.communication_ns == 0


def test_compute_is_never_negative_when_another_clock_counted_more_than_the_step() -> None:
    clock = StepClock(1_000)
    clock.add_communication(10**12)

    step = clock.finish(2_000)

    assert (step.communication_ns, step.compute_ns) == (1_000, 0)


def test_clock_tells_wall_time() -> None:
    assert abs(now_ns() - time.time_ns()) < 1_000_000_000
