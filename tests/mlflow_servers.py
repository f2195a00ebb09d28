"""A real tracking server for a test, which can be killed and started again at the same address."""

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from waiting import wait_until

PATIENCE_S = 300.0
#: What a test's server does without: nothing here asks for jobs, and their runner is one more process.
_SPARED = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


@dataclass(kw_only=True)
class MlflowServer:
    """`mlflow server` with these arguments and this environment, its output in `server.log`."""

    folder: Path
    port: int
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it answers."""
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command = [sys.executable, "-m", "mlflow", "server", *self.arguments, *where]
        environment = {**os.environ, **_SPARED, **self.environment}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder, env=environment, start_new_session=True
            )
        _wait_until_it_answers(self.uri, self.process)

    def kill(self) -> None:
        """SIGKILL to it and its worker, in the middle of whatever they do."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30.0)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30.0)


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[MlflowServer]:
    """A tracking server on SQLite that has never heard of any experiment."""
    folder.mkdir()
    store = ("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "artifacts"))
    server = MlflowServer(folder=folder, port=port, arguments=store)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _wait_until_it_answers(uri: str, process: subprocess.Popen[bytes]) -> None:
    """Until the server says that it is healthy."""

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=2.0):
                return True
        except urllib.error.HTTPError:
            return True  # a refusal is an answer
        except OSError:
            return False

    wait_until(answers, "the server answers", timeout_s=PATIENCE_S, every_s=0.2, command=process)
