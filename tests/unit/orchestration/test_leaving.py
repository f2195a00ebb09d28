"""Leaving `prunella run`: what ends the command, and what Airflow may not swallow."""

import os
import signal
from collections.abc import Iterator

import pytest

from prunella.errors import StorageFull, StorageUnavailable
from prunella.orchestration import leaving
from prunella.orchestration.leaving import Leave, leave, may_leave


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    """What the test took over is given back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    leaving._interrupted.clear()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_step_ends_the_command(number: signal.Signals) -> None:
    with pytest.raises(Leave, match="interrupted"), may_leave(is_unattended=True):
        os.kill(os.getpid(), number)


def test_an_interrupt_that_was_swallowed_ends_the_command_at_the_next_step() -> None:
    leaving.listen()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    reached = []

    with pytest.raises(Leave), may_leave(is_unattended=True):
        reached.append("the step")

    assert reached == []


def test_a_full_store_ends_the_command_with_its_words() -> None:
    with pytest.raises(Leave, match="no room"), may_leave(is_unattended=True):
        raise StorageFull("no room")


def test_a_store_that_is_away_is_left_to_the_next_try() -> None:
    with pytest.raises(StorageUnavailable), may_leave(is_unattended=True):
        raise StorageUnavailable("out of reach")


def test_under_a_scheduler_a_full_store_fails_the_task_and_signals_stay_as_they_are() -> None:
    before = signal.getsignal(signal.SIGTERM)

    with pytest.raises(StorageFull), may_leave(is_unattended=False):
        raise StorageFull("no room")

    assert signal.getsignal(signal.SIGTERM) is before


def test_the_callback_ends_what_meant_to_leave_and_nothing_else() -> None:
    leave({"exception": ValueError("a task that failed")})

    with pytest.raises(Leave, match="no room"):
        leave({"exception": Leave("no room")})


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    leaving.listen()

    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
