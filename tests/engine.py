"""A real container engine for tests, with our images in it: Docker's where it answers, else podman's own service."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from prunella.errors import ConfigError
from prunella.launch import container
from prunella.launch.engine import container_engine
from prunella.launch.images import image_name


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


def in_image(image: str, *command: str) -> str:
    """What a command prints inside an image."""
    import docker

    settings = {"remove": True, "network_mode": "host", **container._closed()}
    output: bytes = docker.from_env().containers.run(image_name(image), list(command), **settings)
    return output.decode()
