import pytest

from prunella.config import Config, StorageConfig, TrainingConfig
from prunella.training_segment.hang import HangWatch
from prunella.training_segment.heartbeat import Heartbeat, Phase

SECOND = 1_000_000_000
CONFIG = Config(
    training=TrainingConfig(hang_floor_s=5.0, hang_factor=10.0, startup_timeout_s=60.0), storage=StorageConfig(retry_s=30.0)
)


def beat(rank: int, *, beats: int, at_s: float, phase: Phase = Phase.FORWARD, step: int = 3, step_s: float = 1.0) -> Heartbeat:
    return Heartbeat(
        rank=rank,
        node=f"node-{rank}",
        pid=100 + rank,
        process_start=1,
        step=step,
        phase=phase,
        at_ns=int(at_s * SECOND),
        beats=beats,
        last_step_ns=int(step_s * SECOND),
    )


def watch() -> HangWatch:
    return HangWatch(CONFIG, world_size=2, launched_ns=0)


def test_silence_longer_than_the_learned_limit_is_a_hang_of_the_rank_with_least_progress() -> None:
    beats = {0: beat(0, beats=20, at_s=100.0), 1: beat(1, beats=18, at_s=100.2)}

    hang = watch().observe(beats, now_ns=int(110.3 * SECOND))

    assert hang is not None
    assert (hang.culprit.rank, hang.limit_s) == (1, 10.0)


def test_slow_steps_stretch_the_limit() -> None:
    beats = {0: beat(0, beats=20, at_s=100.0, step_s=8.0), 1: beat(1, beats=20, at_s=100.0, step_s=8.0)}

    assert watch().observe(beats, now_ns=179 * SECOND) is None
    assert watch().observe(beats, now_ns=181 * SECOND) is not None


def test_fast_steps_never_push_the_limit_below_the_floor() -> None:
    beats = {0: beat(0, beats=20, at_s=100.0, step_s=0.001)}

    assert watch().observe(beats, now_ns=104 * SECOND) is None
    assert watch().observe(beats, now_ns=106 * SECOND) is not None


@pytest.mark.parametrize("phase", [Phase.SAVE, Phase.DATA])
def test_rank_that_may_wait_for_the_store_gets_the_patience_of_the_store(phase: Phase) -> None:
    beats = {0: beat(0, beats=21, at_s=100.0), 1: beat(1, beats=18, at_s=100.0, phase=phase)}

    assert watch().observe(beats, now_ns=139 * SECOND) is None
    assert watch().observe(beats, now_ns=141 * SECOND) is not None


def test_before_the_first_step_only_the_start_up_time_out_counts() -> None:
    beats = {rank: beat(rank, beats=1, at_s=1.0, step=0, step_s=0.0, phase=Phase.INITIALISE) for rank in range(2)}

    assert watch().observe(beats, now_ns=59 * SECOND) is None
    assert watch().observe(beats, now_ns=61 * SECOND) is not None


def test_ranks_that_never_spoke_are_overdue_after_the_start_up_time_out() -> None:
    beats = {0: beat(0, beats=1, at_s=1.0)}

    assert not watch().is_start_overdue(beats, now_ns=59 * SECOND)
    assert watch().is_start_overdue(beats, now_ns=61 * SECOND)
