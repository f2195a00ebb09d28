"""A pod that lends its processes: does what the host says, and tells what became of it."""

import logging
import os
import signal
import socket
import sys
import threading
import time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path

from prunella.node_pods.line import BEAT_S, PYTHON, SCRATCH, Outbox, Word, host_address, receive, send, unpack
from prunella.node_processes import (
    LOOPBACK,
    Identity,
    LocalProcess,
    end_processes,
    family,
    free_port,
    kill_groups,
    process_state,
    start_on_node,
)
from prunella.records import NodeRef

logger = logging.getLogger(__name__)

#: Between two calls of a host that does not answer yet.
_CALL_S = 0.5
#: A host that has not picked up within this long is called again: where a network drops what it does not want, a call hangs for
#: minutes otherwise, longer than a pod that is told to go has. Source: own choice 2026-11, five lost packets on a slow network.
_PICK_UP_S = 5.0


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
            return _dial(secret)
        except AuthenticationError as error:
            logger.error("host_refuses_us error=%s", error)
            return None
        except (EOFError, OSError) as error:  # not there yet: its name, its pod, or its listener
            if time.monotonic() > deadline_s:
                logger.error("host_not_reached waited_s=%s error=%s", patience_s, error)
                return None
        is_leaving.wait(_CALL_S)
    return None


def _dial(secret: bytes) -> "Connection":
    """As `multiprocessing.connection.Client`, which waits as long as the network likes."""
    with socket.create_connection(host_address(), timeout=_PICK_UP_S) as end:
        end.settimeout(None)
        connection = Connection(end.detach())
    try:
        answer_challenge(connection, secret)
        deliver_challenge(connection, secret)
    except BaseException:
        connection.close()
        raise
    return connection


def _serve(connection: "Connection", scratch: Path, is_leaving: threading.Event) -> bool:
    node = NodeRef(name=os.environ["PRUNELLA_NODE"])
    send(connection, {"node": node.name, "address": _own_address(connection), "port": free_port()})
    lent = _Lent(node, scratch)
    try:
        agreed = receive(connection)
        gathered = Outbox(scratch, tuple(agreed["gather"]))
        while True:
            send(connection, {**_report(lent, gathered), "leaving": is_leaving.is_set()})
            answer = receive(connection)
            unpack(scratch, answer["files"], tuple(agreed["accept"]))
            for wanted in answer["wanted"]:
                if "end" in wanted:
                    return True
                lent.do(wanted)
            time.sleep(BEAT_S)
    except (EOFError, OSError) as error:
        logger.error("host_lost error=%s", str(error) or type(error).__name__)
        return False
    finally:
        lent.end()


def _report(lent: "_Lent", gathered: "Outbox") -> Word:
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
        return word.replace(SCRATCH, str(self._scratch)).replace(PYTHON, sys.executable)

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
