"""Every stage is a pod or a TrainJob, for all that Airflow knows; a stand-in for the cluster runs them. No cluster was used.

The fleet is the usual one, two nodes and a spare, so that each TrainJob has a pod a node, and the ranks meet across pods.
"""

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from e2e.campaign import IN_ONE_SEGMENT, Campaign, assert_complete, causes
from e2e.kubelet import Kubelet
from orchestrator.api_double import serving

PROGRAM = Path(__file__).resolve().parents[2] / ".venv-orchestrator" / "bin" / "prunella"


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
    environment = {
        "PRUNELLA_LAUNCH": "kubernetes",
        "PRUNELLA_CLUSTER": str(tmp_path / "cluster.toml"),
        "KUBECONFIG": cluster.kubeconfig(tmp_path),
        "PRUNELLA_PYTHON": sys.executable,  # what is no stage, such as publishing, runs beside Airflow
    }
    return Campaign(folder, environment=environment, airflow=PROGRAM)


@dataclass
class DeadNode:
    """Kills the pod that lends its node to an attempt at training, as soon as a rank runs there."""

    cluster: Kubelet
    attempt: int
    killed: list[str] = field(default_factory=list)

    def __call__(self, name: str) -> None:
        guest = f"{name}-1"
        has_ranks = any((self.cluster.folder / guest).rglob("rank-*.heartbeat.json"))
        if f"-train-s0000-a{self.attempt:02d}-" in name and has_ranks and not self.killed:
            self.killed.append(guest)
            os.killpg(self.cluster.processes[name][1].pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not PROGRAM.exists(), reason="make orchestrator: Airflow's own environment is not there")
def test_a_rank_and_a_whole_pod_are_lost_and_healed_by_other_train_jobs_with_the_unbroken_digest(
    campaign: Campaign, cluster: Kubelet, tmp_path: Path, unbroken: Campaign
) -> None:
    cluster.on_look = dead_node = DeadNode(cluster, attempt=1)

    done = campaign.run(*IN_ONE_SEGMENT, "--fault", "kill:rank=0,step=5", timeout_s=840.0)  # of the second pod

    (tmp_path / "command.log").write_text(done.stdout + done.stderr)
    assert causes(assert_complete(done, campaign)) == [("process_crash", "retry_same_nodes"), ("process_crash", "replace_node")]
    assert len(dead_node.killed) == 1
    assert cluster.refused == []
    jobs = [job["metadata"]["labels"]["prunella.stage"] for job in cluster.jobs.values()]
    assert sorted(jobs) == ["gate_fabric"] * 3 + ["training_segment"] * 3
    assert {job["spec"]["trainer"]["numNodes"] for job in cluster.jobs.values()} == {2, 3}  # the spare's links are gated too
    stages = [pod["metadata"]["labels"]["prunella.stage"] for pod in cluster.pods.values()]
    assert {stage: stages.count(stage) for stage in stages} == {
        "data_prep": 1,
        "gate_node": 3 + 3 + 2,  # the third attempt leaves out the node that failed twice
        "checkpoint_validation": 2,
        "evaluation": 1,
    }
    assert campaign.digest() == unbroken.digest()
    if importlib.util.find_spec("kubeflow"):
        assert "train_job_progress" in done.stderr + done.stdout
