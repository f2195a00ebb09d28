"""MLflow is away while an experiment runs: the run completes with a warning, and a later publication catches up, once."""

import subprocess
import sys
from pathlib import Path

import pytest

from e2e.campaign import IN_ONE_SEGMENT, SEGMENTS, STEPS_PER_SEGMENT, Campaign, assert_complete
from mlflow_servers import PATIENCE_S, mlflow_server
from prunella.node_processes import free_port


@pytest.mark.slow
def test_mlflow_that_is_away_is_caught_up_with_later_and_only_once(
    campaign: Campaign, unbroken: Campaign, tmp_path: Path
) -> None:
    port = free_port()
    done = campaign.run(*IN_ONE_SEGMENT, "--set", f"tracking.uri=http://127.0.0.1:{port}")
    away = campaign.prunella("publish")

    summary = assert_complete(done, campaign)
    assert "publishing_failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert summary["mlflow_run_id"] is None
    assert campaign.digest() == unbroken.digest()
    assert away.returncode == 2
    assert f"MLflow at http://127.0.0.1:{port} could not be brought up to date" in away.stderr.splitlines()[-1]

    with mlflow_server(tmp_path / "mlflow", port):
        first, second = (campaign.prunella("publish", timeout_s=PATIENCE_S) for _ in range(2))
        found = what_mlflow_has(port)

    assert first.returncode == 0, first.stderr[-4000:]
    run_ids = {done.stdout.splitlines()[-1] for done in (first, second)}
    assert run_ids == {campaign.summary()["mlflow_run_id"]}
    assert found["runs"] == "2", "one of the experiment, one of its attempt"
    assert found["steps"] == ",".join(str(step) for step in range(1, SEGMENTS * STEPS_PER_SEGMENT + 1))


def what_mlflow_has(port: int) -> dict[str, str]:
    """Number of runs, and the steps of the loss curve of the experiment's run; asked in a process of its own."""
    script = f"""
import mlflow
client = mlflow.MlflowClient("http://127.0.0.1:{port}")
experiment = client.get_experiment_by_name("prunella")
runs = client.search_runs([experiment.experiment_id])
parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
history = client.get_metric_history(parent.info.run_id, "train/loss")
print(len(runs), ",".join(str(point.step) for point in sorted(history, key=lambda point: point.step)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    runs, steps = done.stdout.split()
    return {"runs": runs, "steps": steps}
