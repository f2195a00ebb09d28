import pytest

from prunella.config import Config, StorageConfig, TrainingConfig
from prunella.storage import longest_silence_s
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


@pytest.mark.parametrize("phase", [Phase.SAVE, Phase.AGREE, Phase.DATA])
def test_rank_that_may_wait_for_the_store_gets_as_long_as_the_store_may_be_silent(phase: Phase) -> None:
    beats = {0: beat(0, beats=21, at_s=100.0), 1: beat(1, beats=18, at_s=100.0, phase=phase)}
    limit_ns = int((110 + longest_silence_s(CONFIG.storage)) * SECOND)

    assert watch().observe(beats, now_ns=limit_ns - SECOND) is None
    assert watch().observe(beats, now_ns=limit_ns + SECOND) is not None


def test_store_that_never_answers_is_given_up_before_the_rank_that_waits_for_it_counts_as_hung() -> None:
    """30 s until a request fails, 60 s of patience, and the last request's own 30 s."""
    beats = {0: beat(0, beats=21, at_s=100.0, phase=Phase.SAVE)}
    hangs = HangWatch(Config(), world_size=1, launched_ns=0)

    assert hangs.observe(beats, now_ns=221 * SECOND) is None
    assert hangs.observe(beats, now_ns=300 * SECOND) is not None


def test_save_that_moves_is_no_hang_however_long_it_takes_and_one_that_stopped_is() -> None:
    hangs = watch()
    found = []

    for at_s in range(100, 2000, 60):
        waiting = {rank: beat(rank, beats=20, at_s=at_s, phase=Phase.SAVE) for rank in range(2)}
        found.append(hangs.observe(waiting, now_ns=(at_s + 59) * SECOND))

    assert found == [None] * len(found)
    assert hangs.observe(waiting, now_ns=(at_s + 200) * SECOND) is not None


def test_rank_that_waits_for_its_peers_part_of_a_save_hangs_only_with_the_peer() -> None:
    waiting = beat(0, beats=20, at_s=100.0, phase=Phase.AGREE)
    hangs = watch()

    moving = hangs.observe({0: waiting, 1: beat(1, beats=20, at_s=900.0, phase=Phase.SAVE)}, now_ns=950 * SECOND)
    stuck = hangs.observe({0: waiting, 1: beat(1, beats=20, at_s=900.0, phase=Phase.SAVE)}, now_ns=1100 * SECOND)

    assert moving is None
    assert stuck is not None
    assert stuck.culprit.rank == 1


def test_before_the_first_step_only_the_start_up_time_out_counts() -> None:
    beats = {rank: beat(rank, beats=1, at_s=1.0, step=0, step_s=0.0, phase=Phase.INITIALISE) for rank in range(2)}

    assert watch().observe(beats, now_ns=59 * SECOND) is None
    assert watch().observe(beats, now_ns=61 * SECOND) is not None


def test_rank_that_waits_for_one_that_never_spoke_does_not_hang() -> None:
    beats = {0: beat(0, beats=1, at_s=1.0, step=0, step_s=0.0, phase=Phase.INITIALISE)}
    hangs = watch()

    assert hangs.observe(beats, now_ns=61 * SECOND) is None
    assert hangs.is_start_overdue(beats, now_ns=61 * SECOND)


def test_rank_that_ended_is_not_taken_for_one_that_never_spoke() -> None:
    beats = {rank: beat(rank, beats=1, at_s=1.0, step=0, step_s=0.0, phase=Phase.INITIALISE) for rank in range(2)}
    hangs = watch()

    is_overdue = hangs.is_start_overdue(beats, now_ns=2 * SECOND)
    hang = hangs.observe({0: beats[0]}, now_ns=61 * SECOND)

    assert not is_overdue
    assert hang is not None


def test_ranks_that_never_spoke_are_overdue_after_the_start_up_time_out() -> None:
    beats = {0: beat(0, beats=1, at_s=1.0)}

    assert not watch().is_start_overdue(beats, now_ns=59 * SECOND)
    assert watch().is_start_overdue(beats, now_ns=61 * SECOND)
