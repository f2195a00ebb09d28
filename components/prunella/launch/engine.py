"""A container engine to talk to: the one that is there, or podman's service, started here for as long as it is needed.

An engine is there when DOCKER_HOST, or Docker's usual socket, answers. Without one, podman needs no daemon: its service is a
program like any other, and what it started goes on when it ends, as stages must.
"""

import contextlib
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prunella.errors import ConfigError
from prunella.launch import door
from prunella.node_processes import die_with_parent

if TYPE_CHECKING:
    from docker import DockerClient

logger = logging.getLogger(__name__)

#: A service that does not answer within this long will not. Source: own measurement 2026-11: 0.5 s, with much to spare.
_START_TIMEOUT_S = 30.0


@contextlib.contextmanager
def container_engine() -> Iterator[None]:
    """See to it that an engine answers while the block runs, where stages are containers; does nothing where they are not.

    Raises:
        ConfigError: none answers, and podman is not there to start one.
    """
    if door.launcher() != "container" or _answers():
        yield
        return
    podman = shutil.which("podman")
    if podman is None:
        raise ConfigError(
            f"{door.VARIABLE}=container: no engine answers at {os.environ.get('DOCKER_HOST', 'the usual socket of Docker')}, "
            "and podman is not installed; start Docker, or install podman (`make system`), or name an engine with DOCKER_HOST"
        )
    with tempfile.TemporaryDirectory(prefix="prunella-engine-") as folder, _service(podman, Path(folder)) as address:
        os.environ["DOCKER_HOST"] = address
        try:
            yield
        finally:
            del os.environ["DOCKER_HOST"]


def is_rootless(engine: "DockerClient") -> bool:
    """Whether an engine runs as an ordinary user. Root of its containers is then that user, and who is not root there owns
    nothing on this machine. Raises DockerException or OSError where it does not answer."""
    return any("rootless" in option for option in engine.info().get("SecurityOptions") or [])


def _answers() -> bool:
    import docker
    from docker.errors import DockerException

    try:
        return bool(docker.from_env(timeout=5).ping())
    except (DockerException, OSError):
        return False


@contextlib.contextmanager
def _service(podman: str, folder: Path) -> Iterator[str]:
    socket, log = folder / "engine.sock", folder / "engine.log"
    address = f"unix://{socket}"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [podman, "system", "service", "--time=0", address],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    try:
        _wait_for(process, socket, log)
        logger.info("container_engine_started address=%s", address)
        yield address
    finally:
        process.terminate()
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise ConfigError(f"podman's service did not start: {log.read_text(errors='replace').strip()}")
        time.sleep(0.05)
