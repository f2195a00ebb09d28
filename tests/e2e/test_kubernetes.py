"""Every stage is a pod or a TrainJob, for all that Airflow knows; a stand-in for the cluster runs them. No cluster was used."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.campaign import Campaign, assert_complete, causes
from e2e.kubelet import Kubelet
from orchestrator.api_double import serving

PROGRAM = Path(__file__).resolve().parents[2] / ".venv-orchestrator" / "bin" / "prunella"
#: As many ranks as the unbroken experiment has, on one node: more than one pod cannot train yet.
FLEET = "nodes:\n  - {name: node-0, role: active, devices: 2}\n"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Kubelet]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    with serving(Kubelet(folder=tmp_path / "pods", environment=inherited)) as cluster:
        yield cluster
        cluster.end()


@pytest.fixture
def campaign(cluster: Kubelet, tmp_path: Path) -> Campaign:
    """An experiment on that cluster, whose root is a volume of it."""
    folder = tmp_path / "campaign"
    (tmp_path / "cluster.toml").write_text(f'claim = "prunella-root"\nclaim_path = "{folder / "root"}"\n')
    (tmp_path / "fleet.yaml").write_text(FLEET)
    environment = {
        "PRUNELLA_LAUNCH": "kubernetes",
        "PRUNELLA_CLUSTER": str(tmp_path / "cluster.toml"),
        "KUBECONFIG": cluster.kubeconfig(tmp_path),
        "PRUNELLA_PYTHON": sys.executable,  # what is no stage, such as publishing, runs beside Airflow
    }
    return Campaign(folder, environment=environment, airflow=PROGRAM)


@pytest.mark.slow
@pytest.mark.skipif(not PROGRAM.exists(), reason="make orchestrator: Airflow's own environment is not there")
def test_a_killed_rank_in_a_train_job_is_healed_by_another_with_the_unbroken_digest(
    campaign: Campaign, cluster: Kubelet, tmp_path: Path, unbroken: Campaign
) -> None:
    options = ("--nodes", "1", "--fleet", str(tmp_path / "fleet.yaml"), "--fault", "kill:rank=1,step=5")

    done = campaign.run(*options)

    (tmp_path / "command.log").write_text(done.stdout + done.stderr)
    assert causes(assert_complete(done, campaign)) == [("process_crash", "retry_same_nodes")]
    assert cluster.refused == []
    stages = [pod["metadata"]["labels"]["prunella.stage"] for pod in cluster.pods.values()]
    assert {stage: stages.count(stage) for stage in stages} == {
        "data_prep": 2,
        "gate_node": 3,
        "checkpoint_validation": 3,
        "evaluation": 2,
    }
    jobs = [job["metadata"]["labels"]["prunella.stage"] for job in cluster.jobs.values()]
    assert sorted(jobs) == ["gate_fabric"] * 3 + ["training_segment"] * 3
    assert campaign.digest() == unbroken.digest()
    if importlib.util.find_spec("kubeflow"):
        assert "train_job_progress" in done.stderr + done.stdout
