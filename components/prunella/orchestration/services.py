"""Long-running programs kept alive, as an init system would: started together, started again when one dies.

Each runs in a session of its own with its own log, and dies with the process that supervises it. What a service that died
left running is ended before it is started again: workers of a killed scheduler hold copies of its connections, and with them
its locks in the database. Stages have sessions of their own and go on. A service that keeps dying is started ever less often.
"""

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from prunella.errors import PrunellaError
from prunella.node_processes import die_with_parent

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_GRACE_S = 10.0
#: A service that lived less than this is started again only after a delay, twice as long each time, up to a limit.
#: Source: own choice 2026-11, after systemd's RestartSteps; Airflow's services need 5 to 40 s to come up.
_STABLE_S = 30.0
_FIRST_DELAY_S = 0.5
_MAX_DELAY_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """One program: what to run, with which additional environment."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Life:
    """One service's process, and when it may be started again once it has died."""

    process: subprocess.Popen[bytes]
    started_s: float
    delay_s: float
    due_s: float | None = None

    def is_due(self, now_s: float) -> bool:
        """Whether it is dead, and its delay is over. Notes the death the first time, and ends what it left behind."""
        if self.process.poll() is None:
            return False
        if self.due_s is None:
            _send(signal.SIGKILL, _in_sessions({self.process.pid}))
            self.due_s = now_s + (0.0 if now_s - self.started_s > _STABLE_S else self.delay_s)
        return now_s >= self.due_s

    def next_delay_s(self) -> float:
        """The delay of the next life, should that be short too."""
        is_stable = self.due_s is not None and self.due_s - self.started_s > _STABLE_S
        return _FIRST_DELAY_S if is_stable else min(2 * self.delay_s, _MAX_DELAY_S)


class Supervisor:
    """Runs services until it is closed. `pids` is for people and for tests that kill one."""

    def __init__(self, services: tuple[Service, ...], logs: Path) -> None:
        self._services = services
        self._logs = logs
        self._lives: dict[str, _Life] = {}
        self._is_closed = threading.Event()
        self._started = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    @property
    def pids(self) -> dict[str, int]:
        """Process id of each service, as of now."""
        return {name: life.process.pid for name, life in self._lives.items()}

    def __enter__(self) -> "Supervisor":
        self._logs.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise PrunellaError(f"a service could not be started: {self._failure}") from self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed.set()
        self._thread.join()

    def _watch(self) -> None:
        """All processes are children of this one thread: the kernel ties their life to it."""
        try:
            for service in self._services:
                self._start(service, delay_s=_FIRST_DELAY_S)
        except OSError as error:
            self._failure = error
            self._is_closed.set()
        self._started.set()
        while not self._is_closed.wait(_POLL_S):
            for service in self._services:
                life = self._lives[service.name]
                if life.is_due(time.monotonic()):
                    logger.warning("service_started_again name=%s exit_code=%s", service.name, life.process.returncode)
                    self._start(service, delay_s=life.next_delay_s())
        self._stop_all()

    def _start(self, service: Service, *, delay_s: float) -> None:
        with (self._logs / f"{service.name}.log").open("ab") as log:
            process = subprocess.Popen(
                list(service.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **service.environment},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._lives[service.name] = _Life(process=process, started_s=time.monotonic(), delay_s=delay_s)

    def _stop_all(self) -> None:
        """Ask, then force. Everything in a session that we began is ours, also what outlived the service that began it."""
        for number, grace_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, 0.0)):
            _send(number, self._ours())
            deadline = time.monotonic() + grace_s
            while time.monotonic() < deadline and self._ours():
                time.sleep(0.05)
        for life in self._lives.values():
            life.process.wait()

    def _ours(self) -> list[psutil.Process]:
        """Living processes of our sessions. Reaps the services among them that have ended."""
        for life in self._lives.values():
            life.process.poll()
        return _in_sessions({life.process.pid for life in self._lives.values()})


def _in_sessions(sessions: set[int]) -> list[psutil.Process]:
    """Living processes of these sessions. The kernel gives no session's number away while a process is in it."""
    return [process for process in psutil.process_iter() if _session(process.pid) in sessions]


def _send(number: signal.Signals, processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None
