"""Nodes that are pods: real processes on both ends of a real line, on one machine."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path

import psutil
import pytest

from prunella.config import Config
from prunella.node_pods import LOST, PodLauncher, Shared, is_guest, reached, secret_of
from prunella.node_processes import LOOPBACK, LocalLauncher, NodeProcess, free_port, kill_groups, process_start
from prunella.records import GateFabricRequest, NodeRef, Stage
from waiting import wait_until

HERE, THERE, ABSENT = NodeRef(name="node-1"), NodeRef(name="node-0"), NodeRef(name="node-2")
SECRET = secret_of(b"what was asked")
SHARED = Shared(from_guests=("said-*.json", "*.log"), from_host=("told.json",))
GUEST = """
import sys
from pathlib import Path
from prunella.node_pods import be_guest, secret_of
has_ended_well = be_guest(Path(sys.argv[1]), secret_of(sys.argv[2].encode()), patience_s=20.0)
sys.exit(0 if has_ended_well else 5)
"""


HOST = """
import os, sys, time
from pathlib import Path
from prunella.node_pods import PodLauncher, Shared, secret_of
from prunella.records import NodeRef
scratch, asked = Path(sys.argv[1]), sys.argv[2]
nodes = (NodeRef(name="node-0"), NodeRef(name="node-1"))
with PodLauncher(nodes, scratch, Shared(from_guests=("*.log",)), secret_of(asked.encode())) as launcher:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    launcher.start(nodes[0], [sys.executable, "-c", code], log=scratch / "said.log")
    time.sleep(600)
"""


@pytest.fixture
def pods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of the first pod of three, and its scratch folder."""
    monkeypatch.setenv("PET_NNODES", "3")
    monkeypatch.setenv("PET_NODE_RANK", "0")
    monkeypatch.setenv("PET_MASTER_ADDR", LOOPBACK)
    monkeypatch.setenv("PET_MASTER_PORT", str(free_port()))
    monkeypatch.setenv("PRUNELLA_NODE", HERE.name)
    (tmp_path / "host").mkdir()
    return tmp_path / "host"


@pytest.fixture
def host(pods: Path) -> Iterator[PodLauncher]:
    """The first pod. The third never comes."""
    with PodLauncher((THERE, HERE, ABSENT), pods, SHARED, SECRET) as launcher:
        yield launcher


@pytest.fixture
def host_process(pods: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The first pod, as a process of its own, which starts one on the second."""
    process = subprocess.Popen([sys.executable, "-c", HOST, str(pods), "what was asked"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def guest(pods: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The second pod, in which node-0 is."""
    process = guest_process(tmp_path, "what was asked")
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()


def guest_process(tmp_path: Path, asked: str) -> subprocess.Popen[bytes]:
    (tmp_path / "guest").mkdir(exist_ok=True)
    variables = {**os.environ, "PET_NODE_RANK": "1", "PRUNELLA_NODE": THERE.name}
    return subprocess.Popen([sys.executable, "-c", GUEST, str(tmp_path / "guest"), asked], env=variables)


def until(is_so: Callable[[], object]) -> None:
    """Processes of this test have little to do."""
    wait_until(is_so, timeout_s=20.0, every_s=0.02)


def python(host: PodLauncher, tmp_path: Path, code: str, *arguments: str, node: NodeRef = THERE) -> NodeProcess:
    """Some Python on a node; its output in `said.log`."""
    return host.start(
        node, [sys.executable, "-c", code, *arguments], log=tmp_path / "host" / "said.log", environment={"A": "1"}
    )


# ------------------------------------------------------------------------------------------------ what is lent


def test_a_process_runs_on_the_guest_with_the_files_of_the_host_and_its_own_come_back(
    host: PodLauncher, guest: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    scratch = tmp_path / "host"
    (scratch / "told.json").write_text('"hello"')
    (scratch / "secret.json").write_text('"not shared"')
    code = (
        "import os, pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "text = (folder / 'told.json').read_text()\n"
        "(folder / 'said-0.json').write_text(text + os.environ['PRUNELLA_NODE'] + os.environ['A'])\n"
        "print(os.getpid(), sorted(path.name for path in folder.iterdir()))\n"
        "sys.exit(7)\n"
    )

    process = python(host, tmp_path, code, str(scratch))

    until(lambda: process.poll() is not None)
    assert process.poll() == 7
    assert (scratch / "said-0.json").read_text() == '"hello"node-01'
    said = (scratch / "said.log").read_text()
    assert "['said-0.json', 'said.log', 'told.json']" in said
    assert (tmp_path / "guest" / "said.log").read_text() == said


def test_a_log_that_grows_comes_in_pieces_and_a_file_that_changes_comes_whole(
    host: PodLauncher, guest: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    scratch = tmp_path / "host"
    code = (
        "import pathlib, sys, time\n"
        "for n in range(30):\n"
        "    print('line', n, flush=True)\n"
        "    (pathlib.Path(sys.argv[1]) / 'said-0.json').write_text(str(n))\n"
        "    time.sleep(0.02)\n"
    )

    process = python(host, tmp_path, code, str(scratch))

    until(lambda: process.poll() is not None)
    assert (scratch / "said.log").read_text() == "".join(f"line {n}\n" for n in range(30))
    assert (scratch / "said-0.json").read_text() == "29"


def test_what_runs_there_is_known_by_its_letter_and_killed_with_its_children(
    host: PodLauncher, guest: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """The child is in a session of its own, like the ranks of an agent."""
    code = (
        "import json, pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "(pathlib.Path(sys.argv[1]) / 'said-0.json').write_text(json.dumps(child.pid))\n"
        "time.sleep(600)\n"
    )
    process = python(host, tmp_path, code, str(tmp_path / "host"))
    until((tmp_path / "host" / "said-0.json").exists)
    child = json.loads((tmp_path / "host" / "said-0.json").read_text())
    start = process_start(child)
    assert start is not None

    until(lambda: host.state(THERE, child, start) is not None)
    os.kill(child, signal.SIGSTOP)
    until(lambda: host.state(THERE, child, start) == "T")
    assert host.state(HERE, os.getpid(), process_start(os.getpid()) or 0) is not None

    kill_groups([process])

    assert process.poll() == -signal.SIGKILL
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    until(lambda: host.state(THERE, child, start) is None)


def test_the_nodes_meet_where_they_are(host: PodLauncher, guest: subprocess.Popen[bytes]) -> None:
    host.wait_for_guests(0.5)

    assert [host.is_here(node) for node in (THERE, HERE)] == [False, True]
    assert not host.is_one_machine
    address, port = host.meeting_point(THERE)
    assert (address, port > 0) == (LOOPBACK, True)
    assert host.own_address == LOOPBACK


# ------------------------------------------------------------------------------------------------ who goes, and who never came


def test_to_a_host_whose_guest_is_killed_everything_there_has_ended(
    host: PodLauncher, guest: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    process = python(host, tmp_path, code)
    log = tmp_path / "host" / "said.log"
    until(lambda: log.exists() and log.read_text().endswith("\n"))
    pid = int(log.read_text())
    start = process_start(pid) or 0

    guest.kill()

    until(lambda: process.poll() is not None)
    assert process.poll() == LOST
    assert host.state(THERE, pid, start) is None
    until(lambda: process_start(pid) is None)
    kill_groups([process])


def test_a_guest_whose_host_is_killed_ends_what_it_started_and_says_so(
    host_process: subprocess.Popen[bytes], guest: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    log = tmp_path / "host" / "said.log"
    until(lambda: log.exists() and log.read_text().endswith("\n"))
    pid = int(log.read_text())
    assert process_start(pid) is not None

    host_process.kill()

    assert guest.wait(20) == 5
    assert process_start(pid) is None


def test_a_guest_that_is_told_to_go_tells_the_host_and_stays_until_it_is_let_go(
    host: PodLauncher, guest: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    process = python(host, tmp_path, "import time; time.sleep(600)")
    until(lambda: (tmp_path / "guest" / "said.log").exists())
    assert not host.is_leaving
    guest.terminate()  # the cluster tells a pod to go; the host decides when

    until(lambda: host.is_leaving)
    assert (guest.poll(), process.poll()) == (None, None)
    host.__exit__()

    assert guest.wait(20) == 0


def test_on_a_node_that_never_calls_nothing_runs_and_nothing_is_started_later(host: PodLauncher, tmp_path: Path) -> None:
    process = python(host, tmp_path, "print('never')", node=ABSENT)

    assert process.poll() is None
    started = time.monotonic()
    kill_groups([process])

    assert process.poll() == -signal.SIGKILL
    assert time.monotonic() - started < 5
    assert host.state(ABSENT, 1, 1) is None


def test_a_stranger_is_refused_and_keeps_nobody_out(host: PodLauncher, tmp_path: Path) -> None:
    where = (LOOPBACK, int(os.environ["PET_MASTER_PORT"]))
    with pytest.raises(AuthenticationError):
        Client(where, authkey=secret_of(b"something else"))
    silent = Client(where)  # says nothing at all
    wrong = guest_process(tmp_path, "something else")
    assert wrong.wait(20) == 5

    right = guest_process(tmp_path, "what was asked")

    process = python(host, tmp_path, "print('here')")
    until(lambda: process.poll() is not None)
    assert process.poll() == 0
    silent.close()
    right.kill()
    right.wait()


def test_a_guest_whose_calls_get_lost_on_the_way_goes_when_it_is_told_to(pods: Path, tmp_path: Path) -> None:
    """As behind a network policy: a connection is neither accepted nor refused. Here the queue of a listener is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((LOOPBACK, int(os.environ["PET_MASTER_PORT"])))
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        guest = guest_process(tmp_path, "what was asked")
        stack.callback(guest.wait)
        stack.callback(guest.kill)
        until(lambda: any(one.status == psutil.CONN_SYN_SENT for one in psutil.Process(guest.pid).net_connections()))

        guest.terminate()

        assert guest.wait(20) == 5


def test_a_store_with_a_key_makes_another_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")

    assert secret_of(b"what was asked") != SECRET


@pytest.mark.parametrize("name", ["../out.log", "/out.log", "secret.json", "sub/said-0.json"])
def test_a_file_that_was_not_agreed_upon_ends_the_line(host: PodLauncher, tmp_path: Path, name: str) -> None:
    with Client((LOOPBACK, int(os.environ["PET_MASTER_PORT"])), authkey=SECRET) as line:
        line.send_bytes(json.dumps({"node": THERE.name, "address": LOOPBACK, "port": 1}).encode())
        line.recv_bytes()
        files = [{"name": name, "data": ""}]
        line.send_bytes(json.dumps({"files": files, "alive": [], "codes": {}, "leaving": False}).encode())
        with pytest.raises(EOFError):
            line.recv_bytes()

    assert sorted(path.name for path in tmp_path.rglob("*")) == ["host"]


# ------------------------------------------------------------------------------------------------ which pod is which


def test_without_other_pods_every_node_is_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PET_NNODES", "1")

    request = GateFabricRequest(
        stage=Stage.GATE_FABRIC, root="r", experiment="e", config_digest="d", output="o", nodes=(HERE, THERE), wanted=2
    )

    with reached(Config(), request, tmp_path, SHARED) as launcher:
        assert isinstance(launcher, LocalLauncher)
    assert not is_guest()


@pytest.mark.parametrize(("rank", "expected"), [("0", False), ("1", True)])
def test_the_first_pod_is_the_host(monkeypatch: pytest.MonkeyPatch, rank: str, expected: bool) -> None:
    monkeypatch.setenv("PET_NNODES", "2")
    monkeypatch.setenv("PET_NODE_RANK", rank)

    assert is_guest() is expected
