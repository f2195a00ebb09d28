"""From a request in a real ledger to a manifest; and the manifests that the repository holds."""

import sys

import pytest
import yaml

from prunella.__main__ import main
from prunella.codec import digest
from prunella.errors import Cause, ConfigError
from prunella.launch.kubernetes.render import manifest, read_launch
from prunella.launch.kubernetes.settings import ClusterSettings
from prunella.records import FailedRecord, Failure, GateNodeRequest, NodeRef, Stage, Verdict
from unit.launch.kubernetes.examples import GOLDEN, as_text, examples, request
from unit.orchestration.story import Story

_KEY = "experiments/demo/segments/0000/attempts/00/requests/gate_node-node-1.json"


@pytest.fixture
def story(root: str) -> Story:
    """An experiment that asks for the gate of node-1."""
    story = Story(root=root).begin()
    request = GateNodeRequest(
        stage=Stage.GATE_NODE,
        root=root,
        experiment=story.name,
        config_digest=digest(story.config),
        output="experiments/demo/segments/0000/attempts/00/records/gate_node-node-1.json",
        nodes=(NodeRef(name="node-1"),),
        node="node-1",
    )
    story.ledger.put_request(_KEY, request)
    return story


def test_manifests_are_those_of_the_repository() -> None:
    different = [name for name, found in examples().items() if (GOLDEN / f"{name}.yaml").read_text() != as_text(found)]

    assert different == [], "a manifest changed; if that was meant, run `make golden` and commit"
    assert sorted(path.stem for path in GOLDEN.iterdir()) == sorted(examples())


def test_every_stage_has_a_manifest_of_its_kind() -> None:
    kinds = {name: found["kind"] for name, found in examples().items()}

    assert set(kinds) == {stage.value for stage in Stage}
    assert {name for name, kind in kinds.items() if kind == "TrainJob"} == {"gate_fabric", "training_segment"}


def test_a_request_key_is_all_that_a_manifest_is_made_from(story: Story) -> None:
    launch = read_launch(Stage.GATE_NODE, root=story.root, key=_KEY)

    found = manifest(launch, ClusterSettings(claim="prunella-root", claim_path=story.root))

    assert found["metadata"]["annotations"] == {"prunella.root": story.root, "prunella.request": _KEY}
    assert launch.timeout_s == story.config.gate.node_timeout_s


def test_a_stage_that_vanished_is_started_under_another_name(story: Story) -> None:
    first = read_launch(Stage.GATE_NODE, root=story.root, key=_KEY)
    story.ledger.put(story.ledger.vanished_key(first.request.output, 0), vanished(Stage.GATE_NODE))

    second = read_launch(Stage.GATE_NODE, root=story.root, key=_KEY)

    assert (first.start, second.start) == (0, 1)
    assert first.name != second.name


def test_training_that_vanished_is_not_rendered_again(story: Story) -> None:
    key = story.ledger.request_key(0, 0, Stage.TRAINING_SEGMENT)
    asked = request(Stage.TRAINING_SEGMENT, root=story.root, experiment=story.name, config_digest=digest(story.config))
    story.ledger.put_request(key, asked)
    story.ledger.put(story.ledger.vanished_key(asked.output, 0), vanished(Stage.TRAINING_SEGMENT))

    with pytest.raises(ConfigError, match="an attempt never trains twice"):
        read_launch(Stage.TRAINING_SEGMENT, root=story.root, key=key)


def vanished(stage: Stage) -> FailedRecord:
    failure = Failure(cause=Cause.VANISHED, message="evicted")
    return FailedRecord(stage=stage, verdict=Verdict.UNKNOWN, started_ns=1, ended_ns=1, failure=failure)


def test_a_request_that_is_not_there_is_refused(story: Story) -> None:
    with pytest.raises(ConfigError, match="there is no such request"):
        read_launch(Stage.GATE_NODE, root=story.root, key=_KEY.replace("node-1.json", "node-9.json"))


def test_the_command_prints_the_manifest_and_writes_nothing(
    story: Story, tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # type: ignore[no-untyped-def]
    settings = tmp_path / "cluster.toml"
    settings.write_text(f'claim = "prunella-root"\nclaim_path = "{story.root}"\n')
    command = ["kubernetes", "render", "gate_node", "--root", story.root, "--request", _KEY, "--settings", str(settings)]
    monkeypatch.setattr(sys, "argv", ["prunella", *command])
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(SystemExit) as ended:
        main()

    printed = yaml.safe_load(capsys.readouterr().out)
    launch = read_launch(Stage.GATE_NODE, root=story.root, key=_KEY)
    assert (ended.value.code or 0) == 0
    assert printed == manifest(launch, ClusterSettings(claim="prunella-root", claim_path=story.root))
    assert sorted(tmp_path.rglob("*")) == before
