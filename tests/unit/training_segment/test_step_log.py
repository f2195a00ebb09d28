import json
from pathlib import Path

from prunella.records import StepRecord
from prunella.training_segment.step_log import StepLog, read_last


def record(step: int) -> StepRecord:
    return StepRecord(
        step=step,
        start_ns=0,
        end_ns=10,
        data_ns=1,
        compute_ns=7,
        communication_ns=1,
        checkpoint_ns=1,
        loss_nats=2.5,
        grad_norm=1.0,
        learning_rate=0.1,
        tokens=8,
        tokens_per_s=800.0,
        mfu=None,
        load_balance_loss=1.0,
        router_z_loss=0.0,
        tokens_per_expert=((4, 4),),
        batch=step - 1,
    )


def test_last_whole_record_is_read_when_the_writer_was_killed_in_the_middle_of_a_line(tmp_path: Path) -> None:
    log = StepLog(tmp_path, last_step=9)
    log.append(record(1))
    log.append(record(2))
    with log.path.open("ab") as file:
        file.write(b'{"step":3,"start')

    assert read_last(tmp_path) == record(2)


def test_progress_shows_the_last_step(tmp_path: Path) -> None:
    StepLog(tmp_path, last_step=9).append(record(4))

    assert json.loads((tmp_path / "progress.json").read_text()) == {
        "step": 4,
        "last_step": 9,
        "loss_nats": 2.5,
        "tokens_per_s": 800.0,
    }


def test_attempt_without_a_finished_step_has_no_last_record(tmp_path: Path) -> None:
    assert read_last(tmp_path) is None
