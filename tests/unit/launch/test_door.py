"""Stages as real processes: started once, found again, stopped gently, and over when they are dead.

The stage is data prep, held up by the fault `storage-down` for as long as a test needs it alive, then failing on a corpus
that is not there: everything is real, and nothing is trained.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from prunella import codec
from prunella.config import Config, DataConfig
from prunella.errors import Cause
from prunella.faults import FaultSwitch, parse
from prunella.launch import door
from prunella.launch.door import Launch
from prunella.launch.handle import Handle, Process, read
from prunella.ledger import Ledger
from prunella.records import DataPrepRecord, DataPrepRequest, FailedRecord, Stage
from prunella.storage import FolderStore
from unit.orchestration.story import Story

_CONFIG = Config(data=DataConfig(inputs=("/no/such/corpus",)))
OUTPUT = "experiments/demo/segments/0000/runs/00/data_prep.json"
#: How long the store of a held stage stays away: longer than any test, each of which kills its stage.
_HELD_S = 60.0


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """A data prep that fails at once, ready to be started; whatever a test left of it is killed."""
    launch = launch_under(tmp_path, faults=())
    yield launch
    kill(launch)


@pytest.fixture
def held_launch(tmp_path: Path) -> Iterator[Launch]:
    """The same, but its process waits for its store for a while."""
    launch = held_launch_under(tmp_path, seconds=_HELD_S)
    yield launch
    kill(launch)


def held_launch_under(folder: Path, *, seconds: float) -> Launch:
    """A launch whose stage finds the store away for that long."""
    fault = f"storage-down:seconds={seconds}"
    launch = launch_under(folder, faults=(fault,))
    FaultSwitch(FolderStore(launch.root), "demo", (parse(fault),)).fire(parse(fault))
    return launch


def launch_under(folder: Path, *, faults: tuple[str, ...]) -> Launch:
    story = Story(root=str(folder / "root"), config=_CONFIG).begin(faults)
    key = OUTPUT.replace(".json", ".request.json")
    request = DataPrepRequest(
        stage=Stage.DATA_PREP,
        root=story.root,
        experiment=story.name,
        config_digest=codec.digest(_CONFIG),
        output=OUTPUT,
    )
    story.ledger.put(key, request)
    return Launch(
        stage=Stage.DATA_PREP,
        root=story.root,
        request_key=key,
        handle=folder / "stage.handle",
        log=folder / "stage.log",
        node="node-0",
    )


def kill(launch: Launch) -> None:
    found = read(launch.handle)
    if found is not None:
        door.stop(found, grace_s=0.0)


def start(launch: Launch) -> Process:
    handle = door.start_or_attach(launch)
    assert isinstance(handle, Process)
    return handle


def wait(handle: Handle, launch: Launch) -> list[str]:
    lines: list[str] = []
    door.wait(handle, log=launch.log, on_line=lines.append)
    return lines


def record_of(launch: Launch) -> DataPrepRecord | FailedRecord | None:
    """What the stage answered, read past the simulated outage."""
    ledger = Ledger(FolderStore(launch.root), "demo")
    return ledger.find_stage_record(DataPrepRecord, OUTPUT)


# ------------------------------------------------------------------------------------------------ starting and attaching


def test_a_started_stage_leaves_its_record_and_passes_on_what_it_logged(launch: Launch) -> None:
    lines = wait(start(launch), launch)

    record = record_of(launch)
    assert isinstance(record, FailedRecord)
    assert record.failure is not None
    assert record.failure.cause is Cause.CONFIG_ERROR
    assert any("stage_started" in line for line in lines)
    assert "stage_recorded" in lines[-1]
    assert "node=node-0" in lines[-1]


def test_a_second_launch_attaches_to_the_running_stage(held_launch: Launch) -> None:
    first = start(held_launch)

    second = start(held_launch)

    assert second == first
    assert second.is_alive


def test_a_stage_is_no_part_of_the_session_that_started_it(held_launch: Launch) -> None:
    handle = start(held_launch)

    assert os.getsid(handle.pid) == handle.pid != os.getsid(0)


def test_racing_launches_start_one_stage_only(launch: Launch) -> None:
    handles: list[Process] = []
    racers = [threading.Thread(target=lambda: handles.append(start(launch))) for _ in range(2)]

    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    wait(handles[0], launch)

    assert handles[0] == handles[1]
    assert launch.log.read_text().count("stage_started") == 1


def test_a_killed_stage_is_over_without_a_record_and_is_not_started_again(held_launch: Launch) -> None:
    handle = start(held_launch)

    os.kill(handle.pid, signal.SIGKILL)
    wait(handle, held_launch)
    again = start(held_launch)

    assert again == handle
    assert not again.is_alive
    assert record_of(held_launch) is None


def test_an_interpreter_that_cannot_start_a_stage_is_reported_as_no_process(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNELLA_PYTHON", "/bin/false")

    handle = door.start_or_attach(launch)

    assert handle is None


#: In place of Python: opens a file that nobody else opens, and so never comes as far as registering.
_SILENT = "#!/bin/sh\nread -r line < {fifo}\n"


def test_a_process_that_does_not_register_in_time_is_ended_so_that_it_never_runs_unwatched(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo, silent = tmp_path / "fifo", tmp_path / "silent"
    os.mkfifo(fifo)
    silent.write_text(_SILENT.format(fifo=fifo))
    silent.chmod(0o755)
    monkeypatch.setenv("PRUNELLA_PYTHON", str(silent))
    monkeypatch.setattr(door, "_REGISTER_TIMEOUT_S", 0.2)
    before = own_children()

    handle = door.start_or_attach(launch)

    assert handle is None
    assert own_children() - before == set()


def own_children() -> set[int]:
    """Processes that this one started and has not collected yet."""
    return {child.pid for child in psutil.Process().children()}


# ------------------------------------------------------------------------------------------------ stopping

_POLITE = """
import signal, sys
def leave(*_):
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
while True:
    signal.pause()
"""
_STUBBORN = _POLITE.replace("signal.signal(signal.SIGTERM, leave)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)")


def started(program: str, log: Path) -> Process:
    """A process that runs `program` and has said that it is ready."""
    with log.open("ab") as output:
        process = subprocess.Popen([sys.executable, "-c", program], stdout=output, start_new_session=True)
    handle = Process(pid=process.pid, started_s=psutil.Process(process.pid).create_time())
    while handle.is_alive and "ready" not in log.read_text():
        pass
    return handle


def test_an_interrupted_wait_passes_on_sigterm_and_waits_for_the_stage_to_save(tmp_path: Path) -> None:
    log = tmp_path / "log"
    handle = started(_POLITE, log)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        door.wait(handle, log=log, on_poll=interrupt, on_line=lambda line: None)

    assert not handle.is_alive
    assert log.read_text().split() == ["ready", "saved"]


def test_asking_to_stop_returns_at_once_and_the_wait_sees_the_end(tmp_path: Path) -> None:
    log, lines = tmp_path / "log", list[str]()
    handle = started(_POLITE, log)

    door.ask_to_stop(handle)
    door.wait(handle, log=log, on_line=lines.append)

    assert lines == ["ready", "saved"]


def test_a_stage_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    handle = started(_STUBBORN, tmp_path / "log")

    door.stop(handle, grace_s=0.2)
    door.wait(handle, log=tmp_path / "log", on_line=lambda line: None)

    assert not handle.is_alive


def test_stopping_a_process_that_is_gone_hits_nobody_with_its_pid() -> None:
    me = psutil.Process()
    stranger = Process(pid=me.pid, started_s=me.create_time() - 60.0)

    door.stop(stranger, grace_s=0.0)

    assert me.is_running()


def test_a_log_line_is_passed_on_once_and_only_when_it_is_complete(tmp_path: Path) -> None:
    log, lines = tmp_path / "log", list[str]()
    log.write_text("one\ntw")
    handle = started("print('ready', flush=True)", log)

    door.wait(handle, log=log, on_line=lines.append)

    assert lines == ["one", "twready"]
