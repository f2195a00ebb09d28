"""Airflow's side has no torch: it schedules from an environment of its own, and the stages run under the Python that has it."""

import sys
from pathlib import Path

import pytest

from e2e.campaign import IN_ONE_SEGMENT, Campaign, assert_complete, causes

PROGRAM = Path(__file__).resolve().parents[2] / ".venv-orchestrator" / "bin" / "prunella"


@pytest.mark.skipif(not PROGRAM.exists(), reason="make orchestrator: Airflow's own environment is not there")
def test_airflow_without_torch_heals_a_killed_rank_with_the_unbroken_digest(tmp_path: Path, unbroken: Campaign) -> None:
    campaign = Campaign(tmp_path / "campaign", environment={"PRUNELLA_PYTHON": sys.executable}, airflow=PROGRAM)

    done = campaign.run(*IN_ONE_SEGMENT, "--fault", "kill:rank=1,step=5")

    assert causes(assert_complete(done, campaign)) == [("process_crash", "retry_same_nodes")]
    assert campaign.digest() == unbroken.digest()
    assert list((campaign.root / "published").rglob("mlflow.db"))
