"""A real container engine for tests, with our images in it: Docker's where it answers, else podman's own service."""

import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from prunella.errors import ConfigError
from prunella.launch import container
from prunella.launch.engine import container_engine
from prunella.launch.images import image_name

#: Text that a person or a build wrote is smaller.
SMALL_BYTES = 1 << 18
_READ_BYTES = 1 << 20
#: The longest that a command takes is Airflow's start, half a minute on a busy machine.
_PATIENCE_S = 300


@contextmanager
def engine_with(*images: str) -> Iterator[None]:
    """Stages are containers while the block runs. Skips where no engine or no image is there, saying what brings it."""
    import docker

    if not shutil.which("podman") and not shutil.which("docker"):
        pytest.skip("make system: neither podman nor docker is installed")
    before = os.environ.get("PRUNELLA_LAUNCH")
    os.environ["PRUNELLA_LAUNCH"] = "container"
    try:
        with container_engine():
            known = {tag.removeprefix("localhost/") for image in docker.from_env().images.list() for tag in image.tags}
            if missing := {image_name(image) for image in images} - known:
                pytest.skip(f"make images: {', '.join(sorted(missing))} not built yet")
            yield
    except ConfigError as error:
        pytest.skip(f"make system: {error}")
    finally:
        os.environ.pop("PRUNELLA_LAUNCH") if before is None else os.environ.update({"PRUNELLA_LAUNCH": before})


def in_image(image: str, *command: str, environment: dict[str, str] | None = None) -> str:
    """What a command prints inside an image. Raises docker's ContainerError where it fails.

    Its log is read once it is over: followed from the start, a short command's never ended (podman 4.3, once in hundreds).
    """
    import docker
    from docker.errors import ContainerError

    settings = {"network_mode": "host", "environment": environment, **container._closed()}
    made = docker.from_env().containers.run(image_name(image), list(command), detach=True, **settings)
    try:
        code = made.wait(timeout=_PATIENCE_S)["StatusCode"]
        if code:
            raise ContainerError(made, code, command, image, made.logs(stdout=False, stderr=True))
        output: bytes = made.logs(stdout=True, stderr=False)
    finally:
        made.remove(force=True)
    return output.decode()


@contextmanager
def unstarted(image: str) -> Iterator[Any]:
    """A container that never runs: the engine reads and writes its files, whoever may. It is gone afterwards."""
    import docker

    made = docker.from_env().containers.create(image_name(image), ["true"])
    try:
        yield made
    finally:
        made.remove()


def files_in(made: Any) -> Iterator[tuple[str, bytes]]:
    """Every file, folder and link of a container, by path; with its bytes, where it is a file of no more than SMALL_BYTES."""
    stream = io.BufferedReader(_Chunks(made.export()), buffer_size=_READ_BYTES)
    with tarfile.open(fileobj=stream, mode="r|", bufsize=_READ_BYTES) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() and member.size <= SMALL_BYTES else None
            yield "/" + member.name.removeprefix("./").rstrip("/"), content.read() if content is not None else b""


class _Chunks(io.RawIOBase):
    """Pieces that arrive one after another, as one file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or memoryview(next(self._pieces, b""))
        given = self._rest[: len(buffer)]
        buffer[: len(given)] = given
        self._rest = self._rest[len(given) :]
        return len(given)
