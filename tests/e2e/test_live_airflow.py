"""One live smoke: a real Airflow schedules two segments by itself, heals a killed rank, and mirrors to MLflow."""

from pathlib import Path

import pytest

from e2e.live_airflow import DAG_ID, live_airflow, wait_until_complete
from prunella.orchestration.claim import next_segment
from prunella.orchestration.progress import incidents
from prunella.orchestration.publishing import published


@pytest.mark.timeout(900)
def test_live_airflow_runs_a_continuous_experiment_to_its_end_and_heals_a_killed_rank(tmp_path: Path) -> None:
    with live_airflow(tmp_path / "live") as airflow:
        ledger = airflow.open("smoke", segments=2, schedule="continuous", faults=("kill:rank=0,step=5",))
        airflow.trigger(ledger)
        wait_until_complete(ledger, 600.0)
        states = airflow.api.task_states(DAG_ID, "smoke__seg-0000__r0")

        assert next_segment(ledger) is None
        assert [incident.diagnosis.cause for _, _, incident in incidents(ledger)] == ["process_crash"]
        assert states["attempt_0.retry_same_nodes"] == "success"
        assert states["attempt_0.replace_node"] == "skipped"
        assert states["attempt_1.accept"] == "success"
        assert "smoke__seg-0001__r0" in airflow.api.run_states(DAG_ID)
    assert published(ledger) is not None
