"""The communication clock counts and starts again."""

import pytest

from prunella.model.timing import CommunicationClock


def test_take_returns_what_was_added_and_starts_from_zero():
    clock = CommunicationClock()
    clock.add(3)
    clock.add(4)

    assert (clock.take(), clock.take()) == (7, 0)


def test_a_wait_that_raises_is_counted():
    clock = CommunicationClock()

    with pytest.raises(RuntimeError, match="peer gone"), clock.waiting():
        raise RuntimeError("peer gone")

    assert clock.take() > 0
