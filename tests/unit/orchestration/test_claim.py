"""A DAG run takes up one segment, and finds its claim again whatever dies in between."""

import pytest

from prunella.errors import ConfigError
from prunella.ledger import Ledger
from prunella.orchestration.claim import claim, next_segment, read_claim, run_id_for
from prunella.orchestration.run import _run_segments
from prunella.records import Outcome
from unit.orchestration.story import Story


@pytest.fixture
def story(root: str) -> Story:
    return Story(root=root).begin()


def test_a_new_experiment_starts_with_segment_0(story: Story) -> None:
    assert next_segment(story.ledger) == 0
    assert run_id_for(story.ledger, 0) == "demo__seg-0000__r0"


def test_a_segment_is_next_until_one_of_its_runs_was_accepted(story: Story) -> None:
    story.close(story.open_run(0, 0), Outcome.FAILED)
    after_failure = next_segment(story.ledger)
    story.close(story.open_run(0, 1), Outcome.ACCEPTED)

    assert after_failure == 0
    assert next_segment(story.ledger) == 1


def test_an_experiment_whose_segments_were_all_accepted_is_complete(story: Story) -> None:
    story.accept_segment(0)
    story.accept_segment(1)

    assert next_segment(story.ledger) is None
    with pytest.raises(ConfigError, match="'demo' is complete; `prunella extend` adds segments"):
        claim(story.ledger, "another")


def test_the_next_run_id_of_a_segment_says_how_often_it_was_taken_up(story: Story) -> None:
    story.close(story.open_run(0, 0), Outcome.FAILED)

    assert run_id_for(story.ledger, 0) == "demo__seg-0000__r1"


def test_a_claim_can_be_read_back_from_its_key_alone(story: Story) -> None:
    key = claim(story.ledger, "manual__1")

    run = read_claim(story.root, key, is_unattended=True)

    assert key == "experiments/demo/segments/0000/runs/00.json"
    assert (run.experiment, run.segment, run.run_index, run.run_id) == ("demo", 0, 0, "manual__1")
    assert run.is_unattended


def test_a_second_try_of_the_same_run_finds_its_claim(story: Story) -> None:
    assert claim(story.ledger, "manual__1") == claim(story.ledger, "manual__1")
    assert len(story.ledger.runs(0)) == 1


def test_a_second_try_finds_its_claim_even_when_its_segment_was_accepted_meanwhile(story: Story) -> None:
    key = claim(story.ledger, "manual__1")
    run = read_claim(story.root, key, is_unattended=False)
    story.close(run, Outcome.ACCEPTED)

    assert claim(story.ledger, "manual__1") == key


def test_a_second_try_finds_its_claim_even_when_the_experiment_is_complete(story: Story) -> None:
    story.accept_segment(0)
    key = claim(story.ledger, "last")
    story.close(read_claim(story.root, key, is_unattended=False), Outcome.ACCEPTED)

    assert claim(story.ledger, "last") == key


def test_another_run_takes_up_the_same_segment_under_the_next_index(story: Story) -> None:
    claim(story.ledger, "first")

    key = claim(story.ledger, "second")

    assert key.endswith("runs/01.json")
    assert [run.run_id for run in story.ledger.runs(0)] == ["first", "second"]


def test_a_command_that_goes_on_by_itself_leaves_that_on_record(story: Story) -> None:
    def dies(ledger: Ledger, run_id: str) -> None:
        claim(ledger, run_id)

    def accepts(ledger: Ledger, run_id: str) -> None:
        run = read_claim(story.root, claim(ledger, run_id), is_unattended=True)
        story.close(run, Outcome.ACCEPTED, attempt=0)

    messages = [_run_segments(story.ledger, dies), _run_segments(story.ledger, accepts)]

    opened = [run for segment in range(2) for run in story.ledger.runs(segment)]
    assert messages[1] == "complete"
    assert [(run.segment, run.run_index, run.is_carried_on) for run in opened] == [(0, 0, False), (0, 1, False), (1, 0, True)]


def test_a_run_finds_only_the_attempts_it_opened_itself(story: Story) -> None:
    first, second = story.open_run(0, 0), story.open_run(0, 1)
    story.open_attempt(first, 0)
    mine = story.open_attempt(second, 1)

    assert second.attempt(story.ledger, 0) is None
    assert second.attempt(story.ledger, 1) == mine
    assert second.last_attempt(story.ledger) == mine
    assert first.last_attempt(story.ledger) != mine


def test_a_run_without_attempts_has_no_last_one(story: Story) -> None:
    assert story.open_run().last_attempt(story.ledger) is None


def test_a_claim_that_is_not_there_is_an_error_that_says_what_to_do(story: Story) -> None:
    with pytest.raises(ConfigError, match="trigger the DAG again"):
        read_claim(story.root, "experiments/demo/segments/0000/runs/07.json", is_unattended=False)
