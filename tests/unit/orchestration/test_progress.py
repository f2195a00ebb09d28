"""The one line that says what is happening now."""

from prunella.orchestration.progress import progress
from prunella.records import Stage
from prunella.scratch import attempt_scratch
from prunella.training_segment.step_log import StepLog
from unit.orchestration.story import Story
from unit.training_segment.test_step_log import record


def test_a_running_attempt_shows_its_step_its_loss_and_its_speed(root: str) -> None:
    story = Story(root=root).begin()
    attempt = story.open_attempt(story.open_run())
    story.ask(attempt, Stage.TRAINING_SEGMENT)
    scratch = attempt_scratch(root, story.name, 0, 0, opened_ns=attempt.opened_ns)
    StepLog(scratch, last_step=20).append(record(14))

    line = progress(story.ledger).line()

    assert line == "segment 0, attempt 0: training step 14/40 loss 2.500 nats 800 tokens/s"
