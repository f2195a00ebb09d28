"""A process is named by its pid and its start, so that a reused pid is nobody."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

from prunella.launch.handle import Process, read, register

_REGISTER = (
    "import sys; from pathlib import Path; from prunella.launch.handle import register; print(register(Path(sys.argv[1])))"
)


def this_process() -> Process:
    return Process(pid=os.getpid(), started_s=psutil.Process().create_time())


def test_a_registered_process_is_found_alive_under_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "stage.handle"

    is_first = register(path)

    assert is_first
    assert read(path) == this_process()
    assert this_process().is_alive


def test_a_second_claim_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "stage.handle"
    register(path)
    before = path.read_bytes()

    is_first = register(path)

    assert not is_first
    assert path.read_bytes() == before


def test_of_racing_processes_exactly_one_holds_the_handle(tmp_path: Path) -> None:
    path = tmp_path / "stage.handle"
    command = [sys.executable, "-c", _REGISTER, str(path)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]

    answers = [racer.communicate()[0].strip() for racer in racers]

    winner = racers[answers.index("True")]
    found = read(path)
    assert sorted(answers) == ["False", "False", "False", "True"]
    assert found is not None
    assert found.pid == winner.pid


def test_registering_leaves_nothing_but_the_handle(tmp_path: Path) -> None:
    register(tmp_path / "stage.handle")
    register(tmp_path / "stage.handle")

    assert [path.name for path in tmp_path.iterdir()] == ["stage.handle"]


def test_nobody_is_named_where_nobody_registered(tmp_path: Path) -> None:
    assert read(tmp_path / "stage.handle") is None


def test_a_handle_file_is_json_that_a_person_can_read(tmp_path: Path) -> None:
    register(tmp_path / "stage.handle")

    assert set(json.loads((tmp_path / "stage.handle").read_text())) == {"pid", "started_s"}


def test_a_reused_pid_is_not_taken_for_the_process_that_had_it() -> None:
    mine = this_process()

    assert not Process(pid=mine.pid, started_s=mine.started_s - 60.0).is_alive


def test_a_process_that_ended_is_not_alive_even_before_it_is_reaped() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    handle = Process(pid=process.pid, started_s=psutil.Process(process.pid).create_time())
    assert handle.is_alive

    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended and stays a zombie

    assert not handle.is_alive
    process.communicate()
    assert not handle.is_alive
