"""Asking a stage from two places: what one began, the other finds or leaves alone, and never begins again."""

import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from prunella.launch import door
from prunella.launch.door import Launch
from prunella.launch.handle import read
from prunella.ledger import Ledger
from prunella.orchestration.ask_stage import Asking, ask
from prunella.records import DataPrepRequest, FailedRecord, StageRecord
from prunella.storage import FolderStore
from unit.launch.test_door import OUTPUT, held_launch_under, kill

_HELD_S = 60.0


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Launch]:
    """A request whose stage waits for its store for a while; its handle is where the first asker keeps it."""
    launch = held_launch_under(tmp_path, seconds=_HELD_S)
    scratch = tmp_path / "here"
    scratch.mkdir()
    here = Launch(
        stage=launch.stage,
        root=launch.root,
        request_key=launch.request_key,
        handle=scratch / f"{Path(launch.request_key).stem}-0.handle",
        log=scratch / f"{Path(launch.request_key).stem}.log",
    )
    yield here
    kill(here)


def ask_from(scratch: Path, launch: Launch) -> StageRecord | None:
    scratch.mkdir(exist_ok=True)
    ledger = Ledger(FolderStore(launch.root), "demo")
    request = ledger.find(DataPrepRequest, launch.request_key)
    assert request is not None
    return ask(ledger, launch.request_key, request, Asking(scratch=scratch))


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def test_a_stage_begun_on_another_machine_is_not_begun_again_but_counts_as_vanished(
    held: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = threading.Thread(target=ask_from, args=(held.handle.parent, held))
    first.start()
    while read(held.handle) is None:
        first.join(0.05)
    monkeypatch.setattr(door, "_REGISTER_TIMEOUT_S", 0.5)

    answer = ask_from(tmp_path / "elsewhere", held)

    assert answer is None
    assert list((tmp_path / "elsewhere").iterdir()) == []
    [vanishing] = Ledger(FolderStore(held.root), "demo").vanishings(OUTPUT)
    assert vanishing.failure is not None
    assert vanishing.failure.cause.value == "vanished"
    running = read(held.handle)
    assert running is not None
    assert running.is_alive, "the other asker's stage is left alone: its token fences it"
    kill(held)
    first.join()


def test_a_second_try_on_the_same_machine_waits_for_what_the_first_is_starting(held: Launch) -> None:
    answers: list[StageRecord | None] = []
    tries = [threading.Thread(target=lambda: answers.append(ask_from(held.handle.parent, held))) for _ in range(2)]
    for thread in tries:
        thread.start()
    while read(held.handle) is None:
        tries[0].join(0.05)

    begun = [process for process in psutil.process_iter() if str(held.handle) in _command(process)]
    kill(held)
    for thread in tries:
        thread.join()

    assert len(begun) == 1
    assert answers == [None, None]


def test_a_stage_that_ended_is_answered_from_anywhere(tmp_path: Path) -> None:
    launch = held_launch_under(tmp_path, seconds=0.0)

    first, second = ask_from(tmp_path / "here", launch), ask_from(tmp_path / "elsewhere", launch)

    assert isinstance(first, FailedRecord)
    assert second == first
