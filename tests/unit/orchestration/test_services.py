"""Services are kept alive like an init system would, and end with whoever keeps them."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from prunella.errors import PrunellaError
from prunella.orchestration.services import Service, Supervisor
from waiting import wait_until

SLEEPER = (sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()")
STUBBORN = (
    sys.executable,
    "-c",
    "import signal, subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
    "print(child.pid, flush=True)\n"
    "signal.pause()",
)


def eventually(is_met: Callable[[], bool]) -> None:
    """A condition about other processes comes true within 20 s."""
    wait_until(is_met, timeout_s=20.0, every_s=0.02)


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_every_service_runs_in_a_session_of_its_own_with_its_log_and_environment(tmp_path: Path) -> None:
    program = "import os, signal; print(os.environ['WORD'], flush=True); signal.pause()"
    service = Service(name="a", command=(sys.executable, "-c", program), environment={"WORD": "hello"})

    with Supervisor((service, Service(name="b", command=SLEEPER)), tmp_path / "logs") as supervisor:
        pids = supervisor.pids
        eventually(lambda: (tmp_path / "logs" / "a.log").read_text() == "hello\n")
        sessions = {os.getsid(pid) for pid in pids.values()}

    assert set(pids) == {"a", "b"}
    assert sessions == set(pids.values())


def test_a_killed_service_is_started_again_and_the_others_are_left_alone(tmp_path: Path) -> None:
    services = (Service(name="a", command=SLEEPER), Service(name="b", command=SLEEPER))

    with Supervisor(services, tmp_path) as supervisor:
        before = supervisor.pids
        os.kill(before["a"], signal.SIGKILL)
        eventually(lambda: supervisor.pids["a"] != before["a"])
        after = supervisor.pids
        eventually(lambda: (tmp_path / "a.log").read_text().count("up") >= 1)

    assert after["b"] == before["b"]


def test_all_services_end_with_their_supervisor(tmp_path: Path) -> None:
    services = (Service(name="a", command=SLEEPER), Service(name="b", command=SLEEPER))

    with Supervisor(services, tmp_path) as supervisor:
        pids = supervisor.pids

    assert [is_running(pid) for pid in pids.values()] == [False, False]


def test_what_a_service_started_ends_with_it(tmp_path: Path) -> None:
    with Supervisor((Service(name="a", command=STUBBORN),), tmp_path):
        eventually(lambda: (tmp_path / "a.log").read_text().endswith("\n"))
        child = int((tmp_path / "a.log").read_text())

    eventually(lambda: not is_running(child))


def test_what_a_killed_service_left_running_is_ended_when_it_is_started_again(tmp_path: Path) -> None:
    with Supervisor((Service(name="a", command=STUBBORN),), tmp_path) as supervisor:
        eventually(lambda: (tmp_path / "a.log").read_text().endswith("\n"))
        orphan, first = int((tmp_path / "a.log").read_text()), supervisor.pids["a"]
        os.kill(first, signal.SIGKILL)
        eventually(lambda: supervisor.pids["a"] != first)

        eventually(lambda: not is_running(orphan))


def test_a_service_that_keeps_dying_is_started_ever_less_often(tmp_path: Path) -> None:
    starts = tmp_path / "a.log"

    with Supervisor((Service(name="a", command=(sys.executable, "-c", "print('up')")),), tmp_path):
        eventually(lambda: starts.read_text().count("up") >= 3)
        time.sleep(2.0)  # the fourth is due 2 s after the third, the fifth 4 s after that
        count = starts.read_text().count("up")

    assert count <= 4


def test_a_program_that_is_not_there_is_an_error_and_nothing_stays_behind(tmp_path: Path) -> None:
    services = (Service(name="a", command=SLEEPER), Service(name="b", command=("/no/such/program",)))
    supervisor = Supervisor(services, tmp_path)

    with pytest.raises(PrunellaError, match=r"could not be started: .*/no/such/program"):
        supervisor.__enter__()

    eventually(lambda: not is_running(supervisor.pids["a"]))
