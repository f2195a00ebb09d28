"""The graph under Kubeflow's local runner: the same faults, the same healing, the same digest."""

import signal
from pathlib import Path

import pytest

from e2e.campaign import IN_ONE_SEGMENT, Campaign, assert_complete, causes, processes_of, wait_for, wait_for_ranks


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


def test_a_stage_that_breaks_fails_the_pipeline_with_its_own_message(pipeline: Campaign, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("one document alone")

    done = pipeline.run("--set", f'data.inputs=["{corpus}"]', "--set", "data.on_bad_input=error")

    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("prunella: segment 0 failed: no data set: ")
    assert "expected at least 2 documents with text" in line
    assert causes(pipeline.summary()) == [("config_error", "stop")]
