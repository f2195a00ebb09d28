"""Long-running programs kept alive, as an init system would: started together, started again when one dies.

Each runs in a process group of its own with its own log, and dies with the process that supervises it.
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

from prunella.errors import PrunellaError
from prunella.node_processes import die_with_parent

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_GRACE_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """One program: what to run, with which additional environment."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


class Supervisor:
    """Runs services until it is closed. `pids` is for people and for tests that kill one."""

    def __init__(self, services: tuple[Service, ...], logs: Path) -> None:
        self._services = services
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._is_closed = threading.Event()
        self._started = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    @property
    def pids(self) -> dict[str, int]:
        """Process id of each service, as of now."""
        return {name: process.pid for name, process in self._running.items()}

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
                self._start(service)
        except OSError as error:
            self._failure = error
            self._is_closed.set()
        self._started.set()
        while not self._is_closed.wait(_POLL_S):
            for service in self._services:
                if (code := self._running[service.name].poll()) is not None:
                    logger.warning("service_started_again name=%s exit_code=%s", service.name, code)
                    self._start(service)
        self._stop_all()

    def _start(self, service: Service) -> None:
        with (self._logs / f"{service.name}.log").open("ab") as log:
            self._running[service.name] = subprocess.Popen(
                list(service.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **service.environment},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def _stop_all(self) -> None:
        for number, grace_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, 0.0)):
            for process in self._running.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            deadline = time.monotonic() + grace_s
            while time.monotonic() < deadline and any(p.poll() is None for p in self._running.values()):
                time.sleep(0.05)
        for process in self._running.values():
            process.wait()
