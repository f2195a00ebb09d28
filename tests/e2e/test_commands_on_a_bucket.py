"""Every command takes a root in a bucket and means the same by it: exit code 0, and the line that a person waits for."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from buckets import Bucket, moto_bucket, set_in_environment
from e2e.campaign import Campaign
from prunella.cli import app
from prunella.records import TrainRequest, from_bytes, to_bytes
from prunella.storage import S3Store

REQUEST = "experiments/experiment/segments/0000/attempts/00/requests/training_segment.json"
#: In this order: what they change is what later ones see.
COMMANDS = [
    (("status",), r"state\W+complete"),
    (("checkpoint", "list"), r"0001-00-0001\W+12\W+verified\W+yes\W+sha256"),
    (("checkpoint", "digest"), r"^{digest}$"),
    (("checkpoint", "verify"), r"0001-00-0001 step 12: {digest}"),
    (("checkpoint", "promote", "--reason", "a test"), r"^0001-00-0001$"),
    (("checkpoint", "prune", "--dry-run"), r"^$"),
    (("checkpoint", "prune"), r"^$"),
    (("report",), r"published/.*/report\.html$"),
    (("publish",), r"^[0-9a-f]{32}$"),
    (("node", "list"), r"node-0\W+active\W+\d+\W+available"),
    (("node", "cordon", "node-0", "--reason", "a test"), r"^cordoned$"),
    (("node", "uncordon", "node-0", "--reason", "a test"), r"^returned$"),
    (("kubernetes", "render", "training_segment", "--request", REQUEST), r"kind: TrainJob(.|\n)*{root}"),
    (("stop",), r"experiment '.*' is to stop"),
    (("status",), r"state\W+complete"),
    (("resume",), r"experiment '.*' may go on"),
    (("extend", "--segments", "3"), r"experiment '.*' has 3 segments in all"),
]
#: They train, schedule, or ask a cluster; `test_bucket.py` and others run them on buckets.
ELSEWHERE = {"run", "trigger", "stage", "up", "pipeline run-local", "kubernetes nodes"}


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with moto_bucket() as made:
        yield made


@pytest.fixture
def finished(bucket: Bucket, tmp_path: Path, unbroken: Campaign) -> Campaign:
    """The unbroken experiment, every object of it in a bucket; a request names the root that it is under."""
    root = f"{bucket.root}/{tmp_path.name}"
    with set_in_environment({**bucket.environment, "PRUNELLA_SCRATCH": str(tmp_path / "scratch")}):
        store = S3Store(root)
    for top in ("datasets", "experiments", "fleet"):
        for path in sorted((unbroken.root / top).rglob("*")):
            if path.is_file():
                key, content = path.relative_to(unbroken.root).as_posix(), path.read_bytes()
                if key == REQUEST:
                    content = to_bytes(dataclasses.replace(from_bytes(TrainRequest, content, key), root=root))
                store.put_new(key, content)
    return Campaign(tmp_path / "campaign", environment={**bucket.environment, "COLUMNS": "200"}, bucket=root)


def commands_with_a_root(group: typer.core.TyperGroup, before: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            yield from commands_with_a_root(command, f"{before}{name} ")
        elif any("--root" in parameter.opts for parameter in command.params):
            yield f"{before}{name}"


def test_every_command_with_a_root_is_tried_on_a_bucket() -> None:
    known = set(commands_with_a_root(typer.main.get_command(app)))

    tried = {name for name in known for command, _ in COMMANDS if " ".join(command).startswith(name)}

    assert tried | ELSEWHERE == known


@pytest.mark.slow
def test_every_command_takes_a_root_in_a_bucket(finished: Campaign, unbroken: Campaign) -> None:
    digest = unbroken.digest()
    for command, told in COMMANDS:
        done = finished.prunella(*command)

        line = told.replace("{digest}", re.escape(digest)).replace("{root}", re.escape(finished.bucket or ""))
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert re.search(line, done.stdout.strip(), re.MULTILINE), f"{command}: {done.stdout}"
