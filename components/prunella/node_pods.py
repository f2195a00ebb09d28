"""Nodes that are pods of one TrainJob: the first pod runs the stage, the others lend it their processes.

Every pod runs the same command. The first (PET_NODE_RANK 0) is the host: it runs the stage as it would on one machine, and
starts processes on the others through `PodLauncher`. The others are guests (`be_guest`): each calls the host and then tells
it, ten times a second, what runs there, what ended, and what the stage's scratch files say by now; the answer says what to
start or to kill, and which files the host shares. So the stage watches its own scratch folder and never learns that there
is a network. Nobody outlives the call: a guest whose host is gone kills what it started, and to a host whose guest is gone
everything there has ended.

Host and guest prove to each other that they know the request and, where the store has one, its secret key; after that the
line is not encrypted. What goes over it is JSON, and a file's name is matched against what was agreed.
"""

import base64
import hashlib
import hmac
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from pathlib import Path, PurePosixPath
from typing import Any

from prunella.node_processes import (
    LOOPBACK,
    Identity,
    LocalLauncher,
    LocalProcess,
    NodeLauncher,
    NodeProcess,
    end_processes,
    family,
    free_port,
    kill_groups,
    process_state,
    start_on_node,
)
from prunella.records import NodeRef

logger = logging.getLogger(__name__)

#: Between two words of a guest. Source: own choice 2026-11, as often as the launcher of a training segment looks.
_BEAT_S = 0.1
#: A line that is silent for so long is dead: a machine that lost its power says nothing. Source: own choice 2026-11, well above
#: a pause of either side and below the time a rank may be silent in a collective.
_SILENT_S = 30.0
#: Between two calls of a guest whose host does not answer yet.
_CALL_S = 0.5
#: How long the end of a process elsewhere is waited for. Source: own choice 2026-11, half again what it is waited for there.
_GONE_S = 15.0
#: Exit code of a process whose guest is gone: nobody knows how it ended.
LOST = 255

_GROWING = (".log", ".jsonl")
_SCRATCH, _PYTHON = "{scratch}", "{python}"
Word = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared:
    """Which files of a stage's scratch folder cross the line, as patterns relative to it.

    Args:
        from_guests: what processes write there. Those that end in `.log` or `.jsonl` only ever grow.
        from_host: what the stage writes for them.
    """

    from_guests: tuple[str, ...]
    from_host: tuple[str, ...] = ()


@contextmanager
def reached(
    nodes: Sequence[NodeRef], scratch: Path, shared: Shared, secret: bytes, *, patience_s: float
) -> Iterator[NodeLauncher]:
    """The launcher for these nodes, for the time of the block: of the pods of this TrainJob, else of this machine.

    Args:
        secret: what `be_guest` is given too.
        patience_s: how long the other pods may take to call. One that has not by then counts as silent, not as an error.
    """
    if _pods() == 1:
        yield LocalLauncher()
        return
    with PodLauncher(nodes, scratch, shared, secret) as launcher:
        launcher.wait_for_guests(patience_s)
        yield launcher


def is_guest() -> bool:
    """Whether this is a pod of a TrainJob that lends its processes to the first one."""
    return _pods() > 1 and int(os.environ["PET_NODE_RANK"]) > 0


def _pods() -> int:
    """Of this TrainJob. Source: Kubeflow Trainer 2.3 sets torchrun's PET_ variables in each pod, 2026-11."""
    return int(os.environ.get("PET_NNODES", "1"))


def secret_of(request: bytes) -> bytes:
    """What only pods of this request know: it lies in the store, and the store's key is not in it."""
    return hmac.digest(os.environ.get("AWS_SECRET_ACCESS_KEY", "").encode(), request, "sha256")


def _host_address() -> tuple[str, int]:
    return os.environ["PET_MASTER_ADDR"], int(os.environ["PET_MASTER_PORT"])


# ------------------------------------------------------------------------------------------------ the host


@dataclass
class _Guest:
    """What the host knows of one guest. The lock is held for every look at it and every change."""

    node: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    wanted: list[Word] = field(default_factory=list)
    codes: dict[int, int] = field(default_factory=dict)
    alive: dict[Identity, str] = field(default_factory=dict)
    address: tuple[str, int] | None = None
    has_called: threading.Event = field(default_factory=threading.Event)
    is_gone: bool = False
    is_leaving: bool = False

    def ask(self, word: Word) -> None:
        with self.lock:
            self.wanted.append(word)

    def take(self) -> list[Word]:
        with self.lock:
            wanted, self.wanted = self.wanted, []
        return wanted

    def hear(self, word: Word, write: Callable[[], None]) -> None:
        """Believe what it tells, once its files are written: whoever saw a rank's first beat finds it alive, and whoever finds
        it gone sees its last note."""
        with self.lock:
            write()
            self.codes |= {int(number): code for number, code in word["codes"].items()}
            self.alive = {Identity(pid, start): state for pid, start, state in word["alive"]}
            self.is_leaving = bool(word["leaving"])

    def greet(self, address: tuple[str, int]) -> bool:
        """Whether nobody has called in its name before."""
        with self.lock:
            is_first, self.address = self.address is None, self.address or address
        self.has_called.set()
        return is_first

    def lose(self) -> None:
        with self.lock:
            self.is_gone, self.alive = True, {}

    def kill(self, number: int) -> None:
        """Nothing is started any more where nobody has called."""
        with self.lock:
            if self.address is None:
                self.wanted = [word for word in self.wanted if word["start"]["number"] != number]
                self.codes[number] = -signal.SIGKILL
            else:
                self.wanted.append({"kill": number})


class _LentProcess:
    """A process of a guest."""

    def __init__(self, guest: _Guest, number: int) -> None:
        self._guest = guest
        self._number = number

    def poll(self) -> int | None:
        with self._guest.lock:
            return self._guest.codes.get(self._number, LOST if self._guest.is_gone else None)

    def kill_group(self) -> None:
        self._guest.kill(self._number)

    def wait(self) -> int:
        deadline_s = time.monotonic() + _GONE_S
        while (code := self.poll()) is None:
            if time.monotonic() > deadline_s:
                logger.error("process_not_gone node=%s number=%s", self._guest.node, self._number)
                return LOST
            time.sleep(_BEAT_S / 2)
        return code


class PodLauncher:
    """The nodes of a stage, of which this pod is one and the others are guests."""

    is_one_machine = False

    def __init__(self, nodes: Sequence[NodeRef], scratch: Path, shared: Shared, secret: bytes) -> None:
        self._here = os.environ["PRUNELLA_NODE"]
        self._scratch = scratch
        self._shared = shared
        self._guests = {node.name: _Guest(node.name) for node in nodes if node.name != self._here}
        self._started = 0
        self.own_address, port = _host_address()
        self._secret = secret
        self._listener = Listener((_interface(self.own_address), port), backlog=len(nodes))
        self._threads: list[threading.Thread] = []
        self._is_over = False

    def __enter__(self) -> "PodLauncher":
        threading.Thread(target=self._listen, name="guests", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let every guest go; what they had started is gone then."""
        self._is_over = True
        self._listener.close()
        for guest in self._guests.values():
            guest.ask({"end": True})
        for thread in self._threads:
            thread.join(_GONE_S)

    def wait_for_guests(self, patience_s: float) -> None:
        """Until all have called, or for so long."""
        deadline_s = time.monotonic() + patience_s
        for guest in self._guests.values():
            if not guest.has_called.wait(max(0.0, deadline_s - time.monotonic())):
                logger.warning("guest_missing node=%s waited_s=%s", guest.node, patience_s)

    @property
    def is_leaving(self) -> bool:
        return any(guest.is_leaving for guest in self._guests.values())

    def is_here(self, node: NodeRef) -> bool:
        return node.name == self._here

    def start(self, node: NodeRef, command: list[str], *, log: Path, environment: dict[str, str] | None = None) -> NodeProcess:
        if self.is_here(node):
            return start_on_node(node, command, log=log, environment=environment)
        self._started += 1
        guest = self._guests[node.name]
        told = {
            "number": self._started,
            "command": [self._abroad(word) for word in command],
            "log": log.relative_to(self._scratch).as_posix(),
            "environment": {name: self._abroad(value) for name, value in (environment or {}).items()},
        }
        guest.ask({"start": told})
        return _LentProcess(guest, self._started)

    def _abroad(self, word: str) -> str:
        return word.replace(str(self._scratch), _SCRATCH).replace(sys.executable, _PYTHON)

    def meeting_point(self, node: NodeRef) -> tuple[str, int]:
        if self.is_here(node):
            return self.own_address, free_port()
        guest = self._guests[node.name]
        with guest.lock:
            return guest.address or (self.own_address, free_port())  # nobody will meet at one that has not called

    def state(self, node: NodeRef, pid: int, start: int) -> str | None:
        if self.is_here(node):
            return process_state(pid, start)
        guest = self._guests[node.name]
        with guest.lock:
            return guest.alive.get(Identity(pid, start))

    # -------------------------------------------------------------------------------- in threads

    def _listen(self) -> None:
        while not self._is_over:
            try:
                connection = self._listener.accept()
            except OSError as error:
                if not self._is_over:
                    logger.warning("call_not_taken error=%s", error)
                continue
            threading.Thread(target=self._attend, args=(connection,), name="guest", daemon=True).start()

    def _attend(self, connection: "Connection") -> None:
        """Hear one guest, and answer, until it goes."""
        with connection:
            try:
                deliver_challenge(connection, self._secret)
                answer_challenge(connection, self._secret)
                hello = _receive(connection)
            except (AuthenticationError, EOFError, OSError) as error:
                logger.warning("caller_refused error=%s", str(error) or type(error).__name__)
                return
            guest = self._guests.get(str(hello["node"]))
            if guest is None or not guest.greet((str(hello["address"]), int(hello["port"]))):
                logger.warning("caller_refused node=%s reason=not_expected", hello["node"])
                return
            self._threads.append(threading.current_thread())
            logger.info("guest_called node=%s address=%s", guest.node, hello["address"])
            try:
                self._converse(connection, guest)
            except (EOFError, OSError) as error:
                logger.warning("guest_lost node=%s error=%s", guest.node, str(error) or type(error).__name__)
            finally:
                guest.lose()

    def _converse(self, connection: "Connection", guest: _Guest) -> None:
        _send(connection, {"gather": self._shared.from_guests, "accept": self._shared.from_host})
        outgoing, is_over = _Outbox(self._scratch, self._shared.from_host), False
        while not is_over:
            word = _receive(connection)
            guest.hear(word, partial(_unpack, self._scratch, word["files"], self._shared.from_guests))
            wanted = guest.take()
            is_over = any("end" in one for one in wanted)
            _send(connection, {"wanted": wanted, "files": outgoing.changed()})


def _interface(address: str) -> str:
    """Where to listen: everywhere, but where the address says that all pods are on one machine."""
    try:
        return address if ipaddress.ip_address(address).is_loopback else ""
    except ValueError:
        return ""


# ------------------------------------------------------------------------------------------------ a guest


def be_guest(scratch: Path, secret: bytes, *, patience_s: float) -> bool:
    """Lend this pod's processes to the first pod until it lets go; whether it did, and was not lost.

    Args:
        patience_s: how long the host may take to answer the first call.
    """
    is_leaving = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda number, frame: is_leaving.set())  # the host is told, and decides
    try:
        connection = _call(secret, patience_s, is_leaving)
        if connection is None:
            return False
        with connection:
            return _serve(connection, scratch, is_leaving)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _call(secret: bytes, patience_s: float, is_leaving: threading.Event) -> "Connection | None":
    deadline_s = time.monotonic() + patience_s
    while not is_leaving.is_set():
        try:
            return Client(_host_address(), authkey=secret)
        except AuthenticationError as error:
            logger.error("host_refuses_us error=%s", error)
            return None
        except (EOFError, OSError) as error:  # not there yet: its name, its pod, or its listener
            if time.monotonic() > deadline_s:
                logger.error("host_not_reached waited_s=%s error=%s", patience_s, error)
                return None
        is_leaving.wait(_CALL_S)
    return None


def _serve(connection: "Connection", scratch: Path, is_leaving: threading.Event) -> bool:
    node = NodeRef(name=os.environ["PRUNELLA_NODE"])
    _send(connection, {"node": node.name, "address": _own_address(connection), "port": free_port()})
    lent = _Lent(node, scratch)
    try:
        agreed = _receive(connection)
        gathered = _Outbox(scratch, tuple(agreed["gather"]))
        while True:
            _send(connection, {**_report(lent, gathered), "leaving": is_leaving.is_set()})
            answer = _receive(connection)
            _unpack(scratch, answer["files"], tuple(agreed["accept"]))
            for wanted in answer["wanted"]:
                if "end" in wanted:
                    return True
                lent.do(wanted)
            time.sleep(_BEAT_S)
    except (EOFError, OSError) as error:
        logger.error("host_lost error=%s", str(error) or type(error).__name__)
        return False
    finally:
        lent.end()


def _report(lent: "_Lent", gathered: "_Outbox") -> Word:
    """What a guest tells. Who is gone by the first look has written its last, and who is new by the files is in the second."""
    before, codes = lent.alive(), lent.codes()
    files = gathered.changed()
    lent.look_for_children()
    alive = lent.alive() | before
    return {"files": files, "alive": [[*one, state] for one, state in alive.items()], "codes": codes}


class _Lent:
    """What a guest started for its host."""

    def __init__(self, node: NodeRef, scratch: Path) -> None:
        self._node = node
        self._scratch = scratch
        self._processes: dict[int, LocalProcess] = {}
        self._known: dict[int, set[Identity]] = {}

    def do(self, wanted: Word) -> None:
        if "start" in wanted:
            self._start(wanted["start"])
        else:
            self._kill(int(wanted["kill"]))

    def _start(self, told: Word) -> None:
        log = self._scratch / told["log"]
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [self._at_home(word) for word in told["command"]]
        environment = {name: self._at_home(value) for name, value in told["environment"].items()}
        process = start_on_node(self._node, command, log=log, environment=environment)
        self._processes[int(told["number"])], self._known[int(told["number"])] = process, set()

    def _at_home(self, word: str) -> str:
        return word.replace(_SCRATCH, str(self._scratch)).replace(_PYTHON, sys.executable)

    def _kill(self, number: int) -> None:
        kill_groups([self._processes[number]])
        end_processes(tuple(self._known[number]))

    def end(self) -> None:
        """Nothing is left running."""
        for number in self._processes:
            self._kill(number)

    def codes(self) -> dict[int, int]:
        return {number: code for number, process in self._processes.items() if (code := process.poll()) is not None}

    def look_for_children(self) -> None:
        """Know what the processes have started themselves."""
        for number, process in self._processes.items():
            self._known[number] |= set(family(process.pid))

    def alive(self) -> dict[Identity, str]:
        """Of the known processes those that live, each with its letter of proc(5)."""
        known = set().union(*self._known.values())
        return {one: state for one in known if (state := process_state(*one)) is not None}


def _own_address(connection: "Connection") -> str:
    """Of this pod, as the host sees it."""
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        address: str = end.getsockname()[0]
    return address or LOOPBACK


# ------------------------------------------------------------------------------------------------ the line


def _send(connection: "Connection", word: Word) -> None:
    connection.send_bytes(json.dumps(word).encode())


def _receive(connection: "Connection") -> Word:
    """Raises EOFError when the other side is gone, or silent for too long."""
    if not connection.poll(_SILENT_S):
        raise EOFError(f"silent for {_SILENT_S:g} s")
    word: Word = json.loads(connection.recv_bytes())
    return word


class _Outbox:
    """The files of a folder that match a pattern, as far as they changed since they were last sent."""

    def __init__(self, folder: Path, patterns: tuple[str, ...]) -> None:
        self._folder = folder
        self._patterns = patterns
        self._sent_bytes: dict[Path, int] = {}
        self._sent_digest: dict[Path, bytes] = {}

    def changed(self) -> list[Word]:
        paths = {path for pattern in self._patterns for path in self._folder.glob(pattern) if path.suffix != ".tmp"}
        return [word for path in sorted(paths) if (word := self._change(path)) is not None]

    def _change(self, path: Path) -> Word | None:
        try:
            return self._growth(path) if path.suffix in _GROWING else self._replacement(path)
        except FileNotFoundError:
            return None

    def _growth(self, path: Path) -> Word | None:
        sent = self._sent_bytes.get(path, 0)
        with path.open("rb") as file:
            file.seek(sent)
            data = file.read()
        self._sent_bytes[path] = sent + len(data)
        return {**self._named(path, data), "at": sent} if data else None

    def _replacement(self, path: Path) -> Word | None:
        data = path.read_bytes()
        digest = hashlib.sha256(data).digest()
        if self._sent_digest.get(path) == digest:
            return None
        self._sent_digest[path] = digest
        return self._named(path, data)

    def _named(self, path: Path, data: bytes) -> Word:
        return {"name": path.relative_to(self._folder).as_posix(), "data": base64.b85encode(data).decode()}


def _unpack(folder: Path, files: list[Word], patterns: tuple[str, ...]) -> None:
    """Write what was sent: whole files at once, logs at their ends.

    Raises:
        OSError: a name that was not agreed upon; whoever sends it is not believed any further.
    """
    for word in files:
        name = PurePosixPath(word["name"])
        is_agreed = any(len(name.parts) == len(PurePosixPath(one).parts) and fnmatch(str(name), one) for one in patterns)
        if not is_agreed or ".." in name.parts:
            raise OSError(f"sent {word['name']!r}, which is none of {', '.join(patterns)}")
        path, data = folder / name, base64.b85decode(word["data"])
        path.parent.mkdir(parents=True, exist_ok=True)
        if "at" in word:
            with path.open("ab") as file:
                file.truncate(int(word["at"]))
                file.write(data)
        else:
            temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            temporary.write_bytes(data)
            temporary.replace(path)
