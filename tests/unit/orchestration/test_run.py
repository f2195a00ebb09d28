"""`prunella run` ends with one line: why the experiment stands still, and what a person does about it."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from prunella.errors import Cause
from prunella.ledger import Ledger
from prunella.orchestration import closing
from prunella.orchestration.claim import SegmentRun, claim, read_claim
from prunella.orchestration.opening import StepFailed
from prunella.orchestration.run import RunResult, RunSegment, run_experiment
from prunella.orchestration.submit import Submission
from prunella.records import Action, Stage
from unit.orchestration.story import Story, evaluation, incident


@pytest.fixture
def story(root: str) -> Story:
    return Story(root=root).begin()


@pytest.fixture(autouse=True)
def _signals_as_they_were() -> Iterator[None]:
    """The command takes them for itself; afterwards they are given back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


#: What becomes of the first segment's run.
End = Callable[[Story, SegmentRun], object]


def falls_behind(story: Story, run: SegmentRun) -> None:
    attempt = story.open_attempt(run)
    checkpoint = story.candidate(20)
    story.judge_checkpoint(checkpoint)
    story.decide(attempt, Action.ACCEPT, message="the checkpoint is verified")
    story.put_record(attempt, Stage.EVALUATION, evaluation(checkpoint, is_regression=True))
    closing.close_segment(run)


def fails_early(story: Story, run: SegmentRun) -> None:
    closing.close_segment(run, failed=StepFailed(None, "no data set: the corpus is gone"))


def is_stopped(story: Story, run: SegmentRun) -> None:
    attempt = story.open_attempt(run)
    closing.request_stop(story.ledger, "maintenance")
    story.decide(attempt, Action.STOP, message="an operator asked for it")
    closing.close_segment(run)


def is_fenced(story: Story, run: SegmentRun) -> None:
    lost = incident(Cause.FENCED, Action.STOP)
    story.decide(story.open_attempt(run), Action.STOP, message="another attempt holds the token", incidents=(lost,))
    closing.close_segment(run)


def result_of(story: Story, end: End) -> RunResult:
    """How the command ends after a first segment with this end."""

    @contextmanager
    def engine() -> Iterator[RunSegment]:
        def run_segment(ledger: Ledger, run_id: str) -> None:
            end(story, read_claim(story.root, claim(ledger, run_id), is_unattended=True))

        yield run_segment

    return run_experiment(Submission(root=story.root, experiment=story.name), engine)


@pytest.mark.parametrize(
    ("end", "why", "advice"),
    [
        (
            falls_behind,
            "segment 0 accepted: the checkpoint is verified; the held-out loss rose; ",
            "`prunella checkpoint promote --root ROOT --experiment demo --reason WHY`",
        ),
        (fails_early, "segment 0 failed: no data set: the corpus is gone; ", "the same command goes on"),
        (is_stopped, "segment 0 stopped: an operator asked for it; ", "`prunella resume --root ROOT --experiment demo`"),
        (is_fenced, "segment 0 failed: another attempt holds the token; ", "`prunella status --root ROOT --experiment demo`"),
    ],
)
def test_an_experiment_that_stands_still_says_why_and_what_to_do(story: Story, end: End, why: str, advice: str) -> None:
    result = result_of(story, end)

    assert not result.is_good
    assert result.message.startswith(why)
    assert advice.replace("ROOT", story.root) in result.message
