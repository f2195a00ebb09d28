"""With what a checkpoint is compared, and what a person may say about it."""

import re
import time

import pytest

from prunella.errors import ConfigError
from prunella.ledger import Ledger
from prunella.orchestration.promoting import baseline, promote_by_hand
from prunella.records import CheckpointMark, Outcome
from unit.orchestration.story import Story, accept_evaluated


@pytest.fixture
def story(root: str) -> Story:
    return Story(root=root).begin()


def mark(ledger: Ledger, name: str, word: str) -> None:
    ledger.put(ledger.mark_key(name, word), CheckpointMark(checkpoint=name, reason=f"was {word}", at_ns=time.time_ns()))


def test_before_anything_was_promoted_there_is_nothing_to_compare_with(story: Story) -> None:
    accept_evaluated(story, 0, step=20, is_regression=True)

    assert baseline(story.ledger, 1) is None


def test_a_segment_is_compared_with_the_newest_promoted_checkpoint_before_it(story: Story) -> None:
    first = accept_evaluated(story, 0, step=20)
    mark(story.ledger, first.name, "promoted")
    accept_evaluated(story, 1, step=40, is_regression=True)

    assert baseline(story.ledger, 2) == story.ledger.record_key(0, 0, "evaluation")
    assert baseline(story.ledger, 0) is None


def test_what_a_person_promotes_is_what_the_segments_after_are_compared_with(story: Story) -> None:
    first = accept_evaluated(story, 0, step=20)
    mark(story.ledger, first.name, "promoted")
    second = accept_evaluated(story, 1, step=40, is_regression=True)

    promoted = promote_by_hand(story.ledger, step=None, reason="the mixture was changed on purpose", who="ada")

    found = story.ledger.mark(second.name, "promoted")
    assert promoted == second.name
    assert found is not None
    assert found.reason == "ada: the mixture was changed on purpose"
    assert baseline(story.ledger, 2) == story.ledger.record_key(1, 0, "evaluation")


def test_an_earlier_checkpoint_is_chosen_by_its_step(story: Story) -> None:
    first = accept_evaluated(story, 0, step=20, is_regression=True)
    accept_evaluated(story, 1, step=40, is_regression=True)

    assert promote_by_hand(story.ledger, step=20, reason="the better of two") == first.name


def test_what_the_evaluation_promoted_keeps_its_reason(story: Story) -> None:
    first = accept_evaluated(story, 0, step=20)
    mark(story.ledger, first.name, "promoted")

    assert promote_by_hand(story.ledger, step=20, reason="again") == first.name

    found = story.ledger.mark(first.name, "promoted")
    assert found is not None
    assert found.reason == "was promoted"


@pytest.mark.parametrize("word", ["revoked", "pruned"])
def test_a_checkpoint_that_is_verified_no_more_is_refused(story: Story, word: str) -> None:
    checkpoint = accept_evaluated(story, 0, step=20, is_regression=True)
    mark(story.ledger, checkpoint.name, word)

    with pytest.raises(ConfigError, match=rf"found that it was {word} \(was {word}\)"):
        promote_by_hand(story.ledger, step=None, reason="all the same")


def test_a_checkpoint_that_was_not_evaluated_is_refused(story: Story) -> None:
    story.close(story.open_run(), Outcome.ACCEPTED, attempt=0, checkpoint=story.candidate(20))

    with pytest.raises(ConfigError, match="expected its evaluation, found none"):
        promote_by_hand(story.ledger, step=None, reason="all the same")


@pytest.mark.parametrize("reason", ["", "  "])
def test_a_promotion_without_a_reason_is_refused(story: Story, reason: str) -> None:
    accept_evaluated(story, 0, step=20, is_regression=True)

    with pytest.raises(ConfigError, match="reason: expected why"):
        promote_by_hand(story.ledger, step=None, reason=reason)


def test_a_step_that_ended_no_accepted_segment_is_refused_with_those_that_did(story: Story) -> None:
    accept_evaluated(story, 0, step=20, is_regression=True)
    accept_evaluated(story, 1, step=40, is_regression=True)

    with pytest.raises(ConfigError, match=re.escape("ended with step 30, found ends of accepted segments: 20, 40; name one")):
        promote_by_hand(story.ledger, step=30, reason="a guess")


def test_before_any_segment_was_accepted_that_is_what_is_said(story: Story) -> None:
    with pytest.raises(ConfigError, match="found ends of accepted segments: none yet"):
        promote_by_hand(story.ledger, step=None, reason="too early")
