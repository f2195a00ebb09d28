"""The pod that runs the stage: its launcher starts processes in the pods that called."""

import ipaddress
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener, answer_challenge, deliver_challenge
from pathlib import Path

from prunella.node_pods.line import BEAT_S, PYTHON, SCRATCH, Outbox, Shared, Word, host_address, receive, send, unpack
from prunella.node_processes import Identity, NodeProcess, free_port, process_state, start_on_node
from prunella.records import NodeRef

logger = logging.getLogger(__name__)

#: How long the end of a process elsewhere is waited for. Source: own choice 2026-11, half again what it is waited for there.
_GONE_S = 15.0
#: Exit code of a process whose guest is gone: nobody knows how it ended.
LOST = 255


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
            time.sleep(BEAT_S / 2)
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
        self.own_address, port = host_address()
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
        return word.replace(str(self._scratch), SCRATCH).replace(sys.executable, PYTHON)

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
                hello = receive(connection)
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
        send(connection, {"gather": self._shared.from_guests, "accept": self._shared.from_host})
        outgoing, is_over = Outbox(self._scratch, self._shared.from_host), False
        while not is_over:
            word = receive(connection)
            guest.hear(word, partial(unpack, self._scratch, word["files"], self._shared.from_guests))
            wanted = guest.take()
            is_over = any("end" in one for one in wanted)
            send(connection, {"wanted": wanted, "files": outgoing.changed()})


def _interface(address: str) -> str:
    """Where to listen: everywhere, but where the address says that all pods are on one machine."""
    try:
        return address if ipaddress.ip_address(address).is_loopback else ""
    except ValueError:
        return ""
