"""Steps of the DAG whose stages are pods: our operators and Airflow's, against a stand-in for the API server."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.api_double import (
    GONE,
    PENDING,
    Cluster,
    ended,
    evicted,
    evicted_while_created,
    evicted_while_running,
    running,
    serving,
)
from prunella.errors import Cause, ConfigError
from prunella.fleet.lifecycle import Fleet, Owner
from prunella.ledger import Ledger
from prunella.orchestration import cluster as door
from prunella.orchestration.claim import claim_key
from prunella.orchestration.opening import StepFailed, open_attempt, prepare_data
from prunella.orchestration.sweep import gate_swept_node, open_sweep
from prunella.records import GateNodeRecord, GateNodeRequest, Health, NodeState, Stage, Verdict
from unit.orchestration.story import OPENED_NS, SECOND, Story, validation

pytest.importorskip(
    "airflow.providers.cncf.kubernetes",
    reason="Airflow's Kubernetes provider is in requirements/orchestrator.lock only: make orchestrator (.venv-orchestrator)",
)

Answers = Callable[[dict[str, Any]], None]


@pytest.fixture
def story(root: str) -> Story:
    """An experiment with a data set, whose first attempt is open and asks for the gates of its nodes."""
    story = Story(root=root).begin()
    run = story.open_run()
    story.prepare_data(of=run)
    open_attempt(run, 0)
    return story


@pytest.fixture
def cluster(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster on which the root is a volume; a pod is seen running, then ended. All pauses are left out, and with them all
    patience with an API that is away."""
    settings = tmp_path / "cluster.toml"
    settings.write_text(f'claim = "prunella-root"\nclaim_path = "{root}"\n')
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(door, "PATIENCE_S", -1.0)
    with serving(Cluster(plan=[running(), running(), running(), ended()])) as cluster:
        monkeypatch.setenv("PRUNELLA_LAUNCH", "kubernetes")
        monkeypatch.setenv("PRUNELLA_CLUSTER", str(settings))
        monkeypatch.setenv("KUBECONFIG", cluster.kubeconfig(tmp_path))
        yield cluster


@pytest.fixture
def pushed() -> dict[str, Any]:
    """What was pushed to XCom."""
    return {}


@pytest.fixture
def do(story: Story, pushed: dict[str, Any]) -> Callable[..., Any]:
    """Runs one step of the DAG, as a task whose DAG run took up the segment."""
    from airflow.sdk.execution_time.context import set_current_context

    key = claim_key(story.ledger, 0, 0)

    def run(step: Any, try_number: int = 1) -> Any:
        ti = SimpleNamespace(
            dag_id="pretrain_segment",
            task_id=step.task_id,
            map_index=1,
            try_number=try_number,
            xcom_pull=lambda **_: key,
            xcom_push=lambda key, value: pushed.update({key: value}),
        )
        context = {"ti": ti, "params": {"root": story.root}, "run_id": "demo__seg-0000__r0", "dag": SimpleNamespace()}
        with set_current_context(context):
            return step.execute(context)

    return run


def gate(node: str = "node-1") -> Any:
    from prunella.orchestration.airflow_operators import GateNode

    return GateNode(task_id="gate_node", request=f"experiments/demo/segments/0000/attempts/00/requests/gate_node-{node}.json")


def gated(ledger: Ledger, health: Health = Health.HEALTHY) -> Answers:
    """A gate that answers."""

    def answer(pod: dict[str, Any]) -> None:
        request = ledger.find(GateNodeRequest, pod["metadata"]["annotations"]["prunella.request"])
        assert request is not None
        record = GateNodeRecord(
            stage=Stage.GATE_NODE,
            verdict=Verdict.ACCEPTED,
            started_ns=OPENED_NS,
            ended_ns=OPENED_NS + SECOND,
            node=request.node,
            health=health,
            checks=(),
        )
        ledger.put(request.output, record)

    return answer


def starts(cluster: Cluster) -> list[str]:
    """The number of the start of each pod that was made."""
    return [pod["metadata"]["labels"]["prunella.start"] for pod in cluster.pods.values()]


# ------------------------------------------------------------------------------------------------ one step, one pod


def test_a_gate_runs_as_a_pod_on_its_node_and_its_record_is_what_counts(
    do: Callable[..., Any], cluster: Cluster, story: Story, pushed: dict[str, Any]
) -> None:
    cluster.on_create = gated(story.ledger)

    key = do(gate())

    (pod,) = cluster.pods.values()
    (term,) = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-1"]}]
    assert key.endswith("records/gate_node-node-1.json")
    assert Fleet(story.ledger.store).state("node-1") is NodeState.AVAILABLE
    assert pushed == {}, "XCom has one key, the one that the step returns"
    assert cluster.refused == []


@pytest.mark.parametrize(
    "end", [ended(137), evicted_while_running(), evicted(), GONE], ids=["failed", "evicted", "evicted while pending", "gone"]
)
def test_a_pod_that_ends_without_a_record_is_started_anew_and_then_its_stage_has_vanished(
    do: Callable[..., Any], cluster: Cluster, story: Story, end: dict[str, Any]
) -> None:
    cluster.plan = [end]
    made: list[str] = []
    cluster.on_create = lambda pod: made.append(pod["metadata"]["labels"]["prunella.start"])

    key = do(gate())

    assert made == ["0", "1", "2"]
    assert len(story.ledger.vanishings(key)) == 3
    assert Fleet(story.ledger.store).state("node-1") is NodeState.RETURNED


def test_a_second_start_answers_for_the_first(do: Callable[..., Any], cluster: Cluster, story: Story) -> None:
    answers = gated(story.ledger)
    cluster.plan = [running(), running(), running(), ended(137)]
    cluster.on_create = lambda pod: answers(pod) if pod["metadata"]["labels"]["prunella.start"] == "1" else None

    do(gate())

    assert starts(cluster) == ["0", "1"]
    assert Fleet(story.ledger.store).state("node-1") is NodeState.AVAILABLE


def test_a_gate_that_was_evicted_before_it_had_a_log_is_started_anew(
    do: Callable[..., Any], cluster: Cluster, story: Story
) -> None:
    answers = gated(story.ledger)
    cluster.log_refusals = [400] * 20
    cluster.plan = [evicted_while_created()]
    cluster.on_create = lambda pod: answers(pod) if pod["metadata"]["labels"]["prunella.start"] == "1" else None

    key = do(gate())

    assert starts(cluster) == ["0", "1"]
    assert len(story.ledger.vanishings(key)) == 1
    assert Fleet(story.ledger.store).state("node-1") is NodeState.AVAILABLE


def test_a_second_try_finds_the_pod_of_the_first_and_starts_no_other(
    do: Callable[..., Any], cluster: Cluster, story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.away_after = 3
    with pytest.raises(Exception, match=r"Connection|Max retries"):
        do(gate())
    cluster.away_after = None
    gated(story.ledger)(next(iter(cluster.pods.values())))
    caplog.set_level("INFO")

    do(gate(), try_number=2)

    assert "stage_pod_reattached" not in caplog.text, "its record is there, so nobody asks the cluster"
    assert starts(cluster) == ["0"]
    assert Fleet(story.ledger.store).state("node-1") is NodeState.AVAILABLE


def test_a_second_try_watches_the_pod_of_the_first_to_its_end(
    do: Callable[..., Any], cluster: Cluster, story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.away_after = 3
    with pytest.raises(Exception, match=r"Connection|Max retries"):
        do(gate())
    cluster.away_after = None
    (pod,) = cluster.pods.values()
    looks: list[None] = []

    def look(_name: str) -> None:
        looks.append(None)
        if len(looks) == 3:
            gated(story.ledger)(pod)

    cluster.on_look = look
    caplog.set_level("INFO")

    do(gate(), try_number=2)

    assert f"stage_pod_reattached pod={pod['metadata']['name']}" in caplog.text
    assert starts(cluster) == ["0"]
    assert story.ledger.vanishings("experiments/demo/segments/0000/attempts/00/records/gate_node-node-1.json") == []
    assert Fleet(story.ledger.store).state("node-1") is NodeState.AVAILABLE


def test_a_pod_of_that_name_that_answers_something_else_fails_the_task(do: Callable[..., Any], cluster: Cluster) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    cluster.away_after = 3
    with pytest.raises(Exception, match=r"Connection|Max retries"):
        do(gate())
    cluster.away_after = None
    (pod,) = cluster.pods.values()
    pod["metadata"]["annotations"]["prunella.root"] = "s3://other"

    with pytest.raises(AirflowFailException, match="somebody else made it"):
        do(gate(), try_number=2)


def test_a_pod_that_the_cluster_does_not_start_in_time_is_deleted_and_says_nothing_of_the_node(
    do: Callable[..., Any], cluster: Cluster, story: Story, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with (tmp_path / "cluster.toml").open("a") as file:
        file.write("startup_s = 0\n")
    cluster.plan = [PENDING]

    key = do(gate())

    assert cluster.pods == {}
    assert [verb for verb, _ in cluster.asked].count("delete") == 3
    assert "stage_pod_never_started" in caplog.text
    assert len(story.ledger.vanishings(key)) == 3
    assert Fleet(story.ledger.store).state("node-1") is NodeState.RETURNED


def test_an_image_that_is_not_there_fails_the_task_at_once_and_doubts_nobody(
    do: Callable[..., Any], cluster: Cluster, story: Story
) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    waiting = {"waiting": {"reason": "InvalidImageName", "message": "no such image"}}
    container = {"name": "stage", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": waiting}
    cluster.plan = [{"phase": "Pending", "containerStatuses": [container]}]

    with pytest.raises(AirflowFailException, match=r"cannot start: .*InvalidImageName no such image; correct"):
        do(gate())

    assert cluster.pods == {}
    assert Fleet(story.ledger.store).state("node-1") is NodeState.NEW


def test_an_interrupt_deletes_the_pod(do: Callable[..., Any], cluster: Cluster) -> None:
    """A real SIGINT, while the pod runs."""
    cluster.plan = [running()]
    cluster.on_look = lambda name: signal.raise_signal(signal.SIGINT) if len(cluster.asked) == 4 else None

    with pytest.raises(KeyboardInterrupt):
        do(gate())

    assert cluster.pods == {}


# ------------------------------------------------------------------------------------------------ the other stages


def test_a_validation_stays_off_cordoned_nodes(do: Callable[..., Any], cluster: Cluster, story: Story) -> None:
    from prunella.orchestration.airflow_operators import ValidateCheckpoint

    (attempt,) = story.ledger.attempts(0)
    story.gate(attempt)
    story.train(attempt)
    ref = story.candidate(20)
    Fleet(story.ledger.store).cordon("node-1", Owner.OPERATOR, "smells of smoke")
    output = story.ledger.record_key(0, 0, Stage.CHECKPOINT_VALIDATION)
    cluster.on_create = lambda pod: story.ledger.put(output, validation(ref))

    assert do(ValidateCheckpoint(task_id="validate_checkpoint", rung=0)) == output

    (pod,) = cluster.pods.values()
    (term,) = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["node-1"]}]


def test_text_that_no_pod_can_see_is_refused_before_anything_is_sent(cluster: Cluster, root: str, tmp_path: Path) -> None:
    from prunella.config import Config, DataConfig

    (tmp_path / "book.txt").write_text("Call me Ishmael.")
    story = Story(root=root, config=Config(data=DataConfig(inputs=(str(tmp_path / "book.txt"),)))).begin()

    with pytest.raises(StepFailed, match="where no pod sees it; put it into the store") as raised:
        prepare_data(story.open_run())

    assert raised.value.cause is Cause.CONFIG_ERROR
    assert cluster.asked == []


def test_a_stage_that_no_airflow_task_asks_for_is_refused(cluster: Cluster, root: str) -> None:
    Story(root=root).begin()
    (key,) = open_sweep(root, None, "manual")[:1]

    with pytest.raises(ConfigError, match="started by Airflow's tasks only"):
        gate_swept_node(root, key)

    assert cluster.asked == []


def test_the_command_of_a_pod_is_one_that_answers_the_request(
    do: Callable[..., Any], cluster: Cluster, story: Story, tmp_path: Path
) -> None:
    """Run for real, as a process. Nothing can train in Airflow's environment, so what it answers is why it cannot."""

    def as_a_process(pod: dict[str, Any]) -> None:
        (container,) = pod["spec"]["containers"]
        environment = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
        environment |= {name: str(tmp_path / "in-the-pod") for name in environment}  # a pod has a scratch of its own
        _, *command = container["command"]
        done = subprocess.run([sys.executable, *command], env={**os.environ, **environment}, check=False)
        assert done.returncode == 0

    (tmp_path / "in-the-pod").mkdir()
    cluster.on_create = as_a_process

    key = do(gate())

    assert starts(cluster) == ["0"]
    assert story.ledger.find_stage_record(GateNodeRecord, key) is not None
