import os
from pathlib import Path

from prunella.node_processes import process_start, process_state
from prunella.training_segment.heartbeat import Mark, Phase, Pulse, heartbeat_path, read_heartbeat


def test_last_beat_is_read_back_with_its_marks(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path, rank=3, node="node-1")
    pulse.beat(Phase.INITIALISE, step=0)
    pulse.mark(Mark.BUILT, 42)

    pulse.beat(Phase.FORWARD, step=7)

    beat = read_heartbeat(tmp_path, 3)
    assert beat is not None
    assert (beat.rank, beat.node, beat.step, beat.phase, beat.beats) == (3, "node-1", 7, Phase.FORWARD, 2)
    assert beat.marks == {"built": 42}
    assert process_state(beat.pid, beat.process_start) is not None


def test_rank_that_repeats_itself_is_heard_again_and_has_not_got_on(tmp_path: Path) -> None:
    pulse = Pulse(tmp_path, rank=0, node="node-0")
    pulse.beat(Phase.SAVE, step=7)
    before = read_heartbeat(tmp_path, 0)

    pulse.repeat(Phase.AGREE)

    after = read_heartbeat(tmp_path, 0)
    assert before is not None
    assert after is not None
    assert (after.step, after.phase, after.beats) == (7, Phase.AGREE, before.beats)
    assert after.at_ns > before.at_ns
    assert pulse.phase is Phase.SAVE


def test_rank_that_never_spoke_or_whose_file_is_damaged_says_nothing(tmp_path: Path) -> None:
    heartbeat_path(tmp_path, 1).write_text('{"rank": 1')

    assert read_heartbeat(tmp_path, 0) is None
    assert read_heartbeat(tmp_path, 1) is None


def test_process_with_the_pid_of_a_dead_rank_is_not_that_rank() -> None:
    start = process_start(os.getpid())

    assert start is not None
    assert process_state(os.getpid(), start + 1) is None
