"""The graph under Kubeflow's local runner: the same faults, the same healing, the same digest."""

import json
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from kfp import local

from e2e.campaign import (
    IN_ONE_SEGMENT,
    STEPS_PER_SEGMENT,
    Campaign,
    assert_complete,
    causes,
    processes_of,
    wait_for,
    wait_for_ranks,
)
from prunella.fleet.lifecycle import Fleet
from prunella.orchestration.pipelines.components import CONTAINER_ANSWER, run_in_container
from prunella.orchestration.pipelines.form import Form
from prunella.orchestration.pipelines.sweep_fleet import sweep_fleet
from prunella.records import NodeState
from prunella.storage import FolderStore, create_root
from waiting import PATIENCE_S

#: As Kubeflow's backend says it; its local runner says SUCCEEDED.
ENDED_WELL = {"state": "COMPLETE", "pipelineJobResourceName": "run-1", "pipelineTaskName": "exit-handler-1", "error": {}}


@pytest.fixture
def pipeline(tmp_path: Path) -> Campaign:
    """A new experiment that pipelines run."""
    return Campaign(tmp_path / "pipeline", runs_by=("pipeline", "run-local"))


@pytest.mark.slow
def test_pipeline_heals_a_killed_rank_and_a_bad_node_with_the_unbroken_digest(pipeline: Campaign, unbroken: Campaign) -> None:
    done = pipeline.run("--fault", "kill:rank=1,step=5", "--fault", "bad-node:node=node-1,segment=1")

    summary = assert_complete(done, pipeline)
    assert causes(summary) == [("process_crash", "retry_same_nodes"), ("node_unhealthy", "replace_node")]
    assert done.stderr.splitlines()[-1] == "prunella: complete"
    assert pipeline.digest() == unbroken.digest()


@pytest.mark.slow
def test_interrupted_pipeline_saves_leaves_nothing_running_and_is_finished_by_the_dag(
    pipeline: Campaign, unbroken: Campaign
) -> None:
    command = pipeline.start(*IN_ONE_SEGMENT, "--set", "checkpoint.interval_steps=5")
    wait_for(pipeline.root / "experiments/experiment/segments/0000/attempts/00/requests/training_segment.json", command)
    wait_for_ranks(pipeline, command, 0)
    command.send_signal(signal.SIGTERM)
    code = command.wait(120.0)
    log = (pipeline.folder / "run.log").read_text()

    assert code == 1
    assert log.splitlines()[-1].startswith("prunella: interrupted; not complete: the same command goes on")
    assert processes_of(pipeline) == []

    done = Campaign(pipeline.folder).run(*IN_ONE_SEGMENT, "--set", "checkpoint.interval_steps=5")

    assert done.returncode == 0, done.stderr[-4000:]
    assert pipeline.digest() == unbroken.digest()


@pytest.mark.slow
def test_a_component_that_is_killed_costs_its_run_which_is_judged_closed_and_followed_by_another(
    pipeline: Campaign, unbroken: Campaign
) -> None:
    """As the loss of a pod on a cluster: after it nothing but the exit handler runs."""
    command = pipeline.start(*IN_ONE_SEGMENT)
    wait_for_ranks(pipeline, command, 0)
    for process in component_that_trains(command):
        process.kill()

    assert command.wait(PATIENCE_S) == 0, (pipeline.folder / "run.log").read_text()[-6000:]
    summary = pipeline.summary()
    assert causes(summary) == [("vanished", "retry_same_nodes")]
    assert pipeline.digest() == unbroken.digest()


def component_that_trains(command: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Kubeflow's executor of `train_segment`; the stage is a process of its own, in a session of its own."""
    found = [one for one in psutil.Process(command.pid).children(recursive=True) if "train_segment" in one.cmdline()]
    assert found
    return found


def test_what_people_see_of_a_segment_is_in_the_artifacts_of_its_components(unbroken: Campaign, tmp_path: Path) -> None:
    """Asked again, each step finds its record; the artifacts are made anew."""
    copy = Campaign(tmp_path / "copy")
    copy.take_over(unbroken)
    seen = Seen(tmp_path, str(copy.root))

    dataset = seen.by("prepare_data", "dataset", "system.Dataset")
    metrics = seen.by("train_segment", "metrics", "system.Metrics", rung=0)
    checkpoint = seen.by("validate_checkpoint", "checkpoint", "system.Model", rung=0)
    decision = seen.by("verdict", "decision", "system.Markdown", rung=0)
    evaluation = seen.by("evaluate", "metrics", "system.Metrics")
    report = seen.by("close_segment", "report", "system.HTML", status=ENDED_WELL)

    assert dataset.metadata["train_tokens"] > 0
    assert dataset.metadata["ledger_uri"].startswith(f"{copy.root}/datasets/")
    assert json.loads(dataset.text)["fingerprint"] == dataset.metadata["fingerprint"]
    assert (metrics.metadata["first_step"], metrics.metadata["last_step"]) == (1, STEPS_PER_SEGMENT)
    assert (checkpoint.metadata["step"], checkpoint.metadata["verdict"]) == (STEPS_PER_SEGMENT, "accepted")
    assert Path(checkpoint.metadata["ledger_uri"]).is_dir()
    assert decision.text.startswith("## accept\n")
    assert {"heldout_loss_nats", "bits_per_byte"} < set(evaluation.metadata)
    assert "<html" in report.text
    for artifact in (dataset, metrics, checkpoint, decision, evaluation, report):
        assert artifact.has_its_address


@dataclass(frozen=True)
class Artifact:
    """What a component left of an artifact: the executor's words, and the file."""

    metadata: dict[str, Any]
    text: str
    has_its_address: bool


@dataclass(frozen=True)
class Seen:
    """Components of segment 0 of a finished experiment, run through Kubeflow's executor as their container form is."""

    folder: Path
    root: str

    def by(self, step: str, artifact: str, kind: str, **parameters: Any) -> Artifact:
        """The artifact of one component."""
        place = self.folder / step
        place.mkdir()
        uri = str(place / artifact)
        run = {"root": self.root, "experiment": "experiment", "job_id": "kubeflow-1", "run_id": "experiment__seg-0000__r0"}
        one = {"name": artifact, "type": {"schemaTitle": kind, "schemaVersion": "0.0.1"}, "uri": uri, "metadata": {}}
        outputs = {
            "artifacts": {artifact: {"artifacts": [one]}},
            "parameters": {} if step == "close_segment" else {CONTAINER_ANSWER: {"outputFile": str(place / CONTAINER_ANSWER)}},
            "outputFile": str(place / "executor_output.json"),
        }
        run_in_container(step, json.dumps({"inputs": {"parameterValues": run | parameters}, "outputs": outputs}))
        (told,) = json.loads((place / "executor_output.json").read_text())["artifacts"][artifact]["artifacts"]
        file = Path(uri)
        return Artifact(told["metadata"], file.read_text() if file.exists() else "", told["uri"] == uri)


def test_the_pipeline_of_a_sweep_gates_idle_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path / "scratch"))
    create_root(str(tmp_path / "root"))
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("nodes:\n  - name: ward-0\n  - name: ward-1\n")
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "artifacts"), raise_on_error=True)

    sweep_fleet(Form())(root=str(tmp_path / "root"), fleet=str(fleet))

    states = Fleet(FolderStore(str(tmp_path / "root")))
    assert [states.state(name) for name in ("ward-0", "ward-1")] == [NodeState.AVAILABLE] * 2


def test_a_stage_that_breaks_fails_the_pipeline_with_its_own_message(pipeline: Campaign, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("one document alone")

    done = pipeline.run("--set", f'data.inputs=["{corpus}"]', "--set", "data.on_bad_input=error")

    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("prunella: segment 0 failed: no data set: ")
    assert "expected at least 2 documents with text" in line
    assert causes(pipeline.summary()) == [("config_error", "stop")]
