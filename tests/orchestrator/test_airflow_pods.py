"""A stage's pod as an Airflow task: Airflow's own operator and the official client, against a stand-in for the API server."""

import datetime
import json
import logging
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
    granted,
    kept_waiting,
    running,
    serving,
    unscheduled,
)
from prunella.errors import ConfigError
from prunella.launch.kubernetes.pods import Manifest
from prunella.launch.kubernetes.render import manifest
from prunella.orchestration import cluster as door
from prunella.records import Stage
from unit.launch.kubernetes.examples import SETTINGS, launch

pytest.importorskip(
    "airflow.providers.cncf.kubernetes",
    reason="Airflow's Kubernetes provider is in requirements/orchestrator.lock only: make orchestrator (.venv-orchestrator)",
)

Run = Callable[[Manifest], Any]
GATE = manifest(launch(Stage.GATE_NODE), SETTINGS)
NAME = GATE["metadata"]["name"]
#: The same gate, started again after it vanished.
SECOND_START = manifest(launch(Stage.GATE_NODE, start=1), SETTINGS)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with serving(Cluster()) as cluster:
        yield cluster


@pytest.fixture
def operator(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Manifest], Any]:
    """Makes the task of a manifest. The provider's pauses are left out."""
    from prunella.orchestration.airflow_pods import StagePodOperator

    monkeypatch.setattr("time.sleep", lambda seconds: None)

    def make(document: Manifest) -> Any:
        return StagePodOperator(
            task_id="gate_node",
            pod_template_dict=document,
            in_cluster=False,
            config_file=cluster.kubeconfig(tmp_path),
            startup_check_interval_seconds=0,
        )

    return make


@pytest.fixture
def run(operator: Callable[[Manifest], Any]) -> Run:
    """Runs the task of a manifest once."""
    return lambda document: operator(document).execute(context())


def context(try_number: int = 1) -> dict[str, Any]:
    """What Airflow tells a task, as far as the operator asks."""
    ti = SimpleNamespace(dag_id="d", task_id="gate_node", map_index=0, try_number=try_number, xcom_push=lambda **_: None)
    return {"ti": ti, "run_id": "demo__seg-0003__r0", "dag": SimpleNamespace()}


# ------------------------------------------------------------------------------------------------ what is sent


def test_airflow_sends_the_rendered_pod_and_adds_nothing_but_its_own_labels(run: Run, cluster: Cluster) -> None:
    run(GATE)

    sent = cluster.pods[NAME]
    added = sent["metadata"]["labels"].keys() - GATE["metadata"]["labels"].keys()
    assert without_nothing(sent["spec"]) == without_nothing(GATE["spec"])
    assert sent["metadata"]["annotations"] == GATE["metadata"]["annotations"]
    assert sent["metadata"]["labels"].items() >= GATE["metadata"]["labels"].items()
    assert added <= {"dag_id", "task_id", "run_id", "try_number", "map_index", "kubernetes_pod_operator"} | {
        "airflow_version",
        "airflow_kpo_in_cluster",
    }


def without_nothing(value: Any) -> Any:
    """A document without what says the same as nothing: empty lists and objects, and Kubernetes' own defaults."""
    defaults = {"hostNetwork": False, "terminationMessagePolicy": "File"}
    if isinstance(value, dict):
        kept = {key: without_nothing(item) for key, item in value.items() if (key, item) not in defaults.items()}
        return {key: item for key, item in kept.items() if item not in ({}, [])}
    return [without_nothing(item) for item in value] if isinstance(value, list) else value


def test_a_pod_that_is_not_of_the_schema_is_refused_by_the_stand_in(cluster: Cluster) -> None:
    wrong = {**GATE, "spec": {**GATE["spec"], "automountToken": False}}

    code, _ = cluster.answer("POST", "/api/v1/namespaces/prunella/pods", json.dumps(wrong).encode())

    assert code == 422
    assert cluster.pods == {}


# ------------------------------------------------------------------------------------------------ how it ends


def test_a_stage_runs_to_its_end_and_its_log_is_shown(
    run: Run, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run(GATE)

    assert "stage_recorded" in capsys.readouterr().out
    assert f"stage_pod_ended pod={NAME} phase=Succeeded" in caplog.text


@pytest.mark.parametrize(
    "plan",
    [
        [PENDING, running(), running(), ended(3)],
        [PENDING, PENDING, evicted()],
        [evicted()],
        [PENDING, running(), running(), evicted_while_running()],
    ],
    ids=["without a record", "evicted while pending", "evicted at once", "evicted while running"],
)
def test_a_pod_that_fails_is_not_a_failed_task_because_the_record_or_its_absence_is_the_answer(
    run: Run, cluster: Cluster, plan: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    cluster.plan = plan

    with caplog.at_level(logging.INFO):
        run(GATE)

    assert f"stage_pod_ended pod={NAME} phase=Failed" in caplog.text
    assert [verb for verb, _ in cluster.asked].count("create") == 1


@pytest.mark.parametrize("plan", [[PENDING, GONE], [PENDING, running(), running(), GONE]], ids=["pending", "running"])
def test_a_pod_that_is_gone_has_ended_and_is_not_made_again_in_the_same_try(
    run: Run, cluster: Cluster, plan: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    cluster.plan = plan

    run(GATE)

    assert f"stage_pod_gone pod={NAME}" in caplog.text
    assert [verb for verb, _ in cluster.asked].count("create") == 1


def test_a_pod_that_its_dead_node_cannot_end_has_ended(run: Run, cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """Kubernetes deletes it after a while, and then waits for the node for ever."""
    cluster.plan = [running()]
    looks: list[str] = []

    def look(name: str) -> None:
        looks.append(name)
        if len(looks) == 6:
            cluster.pods[name]["metadata"]["deletionTimestamp"] = "2026-11-21T09:00:00Z"

    cluster.on_look = look

    run(GATE)

    assert f"stage_pod_gone pod={NAME}" in caplog.text


def test_a_pod_that_was_deleted_a_moment_ago_has_its_time_to_save(
    run: Run, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60)
    cluster.plan = [running(), running(), running(), running(), ended()]
    cluster.on_look = lambda name: cluster.pods[name]["metadata"].update(deletionTimestamp=soon.isoformat())
    caplog.set_level(logging.INFO)

    run(GATE)

    assert f"stage_pod_ended pod={NAME} phase=Succeeded" in caplog.text


def test_a_cluster_that_refuses_the_pod_fails_the_task(run: Run, cluster: Cluster) -> None:
    elsewhere = {**GATE, "metadata": {**GATE["metadata"], "name": "Not_A_Name", "namespace": "prunella"}}

    with pytest.raises(Exception, match="Unprocessable"):
        run(elsewhere)

    assert cluster.pods == {}


NO_ROOM = kept_waiting("ErrImagePull", "failed to extract layer: write /var/lib/x: no space left on device")
#: In the words of containerd for a tag that nobody pushed, 2026-11.
NOT_PUSHED = kept_waiting(
    "ErrImagePull", 'failed to resolve reference "lab/prunella/trainer:7": lab/prunella/trainer:7: not found'
)
NO_SECRET = kept_waiting("CreateContainerConfigError", 'secret "prunella-store" not found')


def test_an_image_that_one_node_cannot_pull_now_is_waited_for(
    run: Run, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.plan = [PENDING, NO_ROOM, NO_ROOM, running(), running(), ended()]
    caplog.set_level(logging.INFO)

    run(GATE)

    assert f"stage_pod_ended pod={NAME} phase=Succeeded" in caplog.text
    assert f"stage_pod_waits pod={NAME} for=ErrImagePull: failed to extract layer" in caplog.text


def test_a_node_that_never_pulls_the_image_never_starts_the_pod_which_is_no_mistake_of_ours(
    operator: Callable[[Manifest], Any], cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.plan = [PENDING, NO_ROOM]
    task = operator(GATE)
    task.startup_timeout_seconds = 0

    task.execute(context())

    assert "stage_pod_never_started" in caplog.text
    assert cluster.pods == {}


def test_an_image_that_nobody_pushed_fails_the_task_at_once(run: Run, cluster: Cluster) -> None:
    cluster.plan = [PENDING, NOT_PUSHED]

    with pytest.raises(ConfigError, match=r"cannot start: .*not found; correct the cluster settings, or push the image"):
        run(GATE)

    assert cluster.pods == {}


def test_a_secret_that_nobody_made_is_named_and_no_node_is_doubted_for_it(
    operator: Callable[[Manifest], Any], cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.plan = [{**NO_SECRET, "conditions": [{"type": "PodScheduled", "status": "True"}]}]
    caplog.set_level(logging.INFO)
    task = operator(GATE)
    task.startup_timeout_seconds = 0

    with pytest.raises(ConfigError, match=r'cannot start: secret "prunella-store" not found; make what it names'):
        task.execute(context())

    assert f'stage_pod_waits pod={NAME} for=CreateContainerConfigError: secret "prunella-store" not found' in caplog.text
    assert cluster.pods == {}


def test_why_no_node_takes_a_pod_is_said_once(run: Run, cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    why = "0/3 nodes are available: 1 node(s) were unschedulable."
    cluster.plan = [PENDING, unscheduled(why), unscheduled(why), running(), running(), ended()]
    caplog.set_level(logging.INFO)

    run(GATE)

    assert caplog.text.count(f"stage_pod_waits pod={NAME} for=Unschedulable: {why}") == 1


def test_a_pod_is_deleted_although_the_api_is_away_for_a_moment(operator: Callable[[Manifest], Any], cluster: Cluster) -> None:
    task = operator(GATE)
    task.execute(context())
    cluster.refusals_of_deletions = [503] * 7

    task.delete()

    assert cluster.pods == {}


def test_a_log_that_breaks_off_is_taken_up_again(run: Run, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.cut_logs = 1
    cluster.plan = [PENDING, *[running()] * 6, ended()]

    run(GATE)

    assert cluster.cut_logs == 0
    assert cluster.asked.count(("get", "pods/log")) > 1
    assert "stage_recorded" in capsys.readouterr().out


def test_a_log_that_the_kubelet_cannot_give_for_a_while_is_taken_up_again(
    run: Run, cluster: Cluster, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It restarts: more refusals than Airflow's provider has tries."""
    cluster.log_refusals = [500] * 6
    cluster.plan = [PENDING, *[running()] * 8, ended()]
    caplog.set_level(logging.INFO)

    run(GATE)

    assert f"stage_log_unreadable pod={NAME}" in caplog.text
    assert "stage_recorded" in capsys.readouterr().out
    assert f"stage_pod_ended pod={NAME} phase=Succeeded" in caplog.text


def test_a_pod_evicted_while_its_container_is_created_has_ended_although_it_has_no_log(
    run: Run, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.log_refusals = [400] * 20
    cluster.plan = [PENDING, evicted_while_created()]
    caplog.set_level(logging.INFO)

    run(GATE)

    assert f"stage_pod_ended pod={NAME} phase=Failed reason=Evicted" in caplog.text


def test_a_log_that_is_not_there_does_not_mean_that_its_pod_is_gone(
    run: Run, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """So answers a kubelet that has just begun, and does not know its pods yet."""
    cluster.log_refusals = [404]
    cluster.plan = [PENDING, *[running()] * 8, ended()]
    caplog.set_level(logging.INFO)

    run(GATE)

    assert "stage_pod_gone" not in caplog.text
    assert f"stage_pod_ended pod={NAME} phase=Succeeded" in caplog.text


def test_an_api_that_is_away_for_a_moment_ends_nothing(run: Run, cluster: Cluster) -> None:
    cluster.unavailable = 2

    run(GATE)

    assert list(cluster.pods) == [NAME]
    assert cluster.unavailable == 0


def test_an_api_that_is_away_while_the_control_plane_is_upgraded_ends_nothing(
    run: Run, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """More refusals than two rounds of tries."""
    cluster.unavailable = 12

    run(GATE)

    assert "cluster_away" in caplog.text
    assert list(cluster.pods) == [NAME]
    assert cluster.unavailable == 0


def test_an_api_that_stays_away_fails_the_try(run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "PATIENCE_S", -1.0)
    cluster.away_after = 3

    with pytest.raises(door.ClusterAway, match="does not answer"):
        run(GATE)


@pytest.mark.parametrize("lost", [1, 7], ids=["one answer", "more than a round of tries"])
def test_a_pod_whose_making_was_not_answered_is_found_and_not_made_twice(run: Run, cluster: Cluster, lost: int) -> None:
    cluster.lost_answers = lost

    run(GATE)

    assert cluster.asked.count(("create", "pods")) == lost + 1
    assert list(cluster.pods) == [NAME]


# ------------------------------------------------------------------------------------------------ the name is the handle


@pytest.mark.parametrize("states", [[running(), running(), running(), ended()], [ended()], [evicted()]])
def test_a_second_try_finds_the_pod_of_the_first_and_starts_no_other(
    run: Run, cluster: Cluster, states: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    run(GATE)
    cluster.plan = states

    with caplog.at_level(logging.INFO):
        run(GATE)

    assert f"stage_pod_reattached pod={NAME}" in caplog.text
    assert list(cluster.pods) == [NAME]


def test_a_new_start_is_never_taken_for_its_finished_predecessor(
    run: Run, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.pod(GATE, PENDING, running(), running(), ended())

    with caplog.at_level(logging.INFO):
        run(SECOND_START)

    assert "stage_pod_reattached" not in caplog.text
    assert list(cluster.pods) == [NAME, SECOND_START["metadata"]["name"]]


def test_airflows_own_reattach_still_takes_the_finished_predecessor(cluster: Cluster, tmp_path: Path) -> None:
    """Why ours goes by the name alone. When this fails, Airflow's `durable` may do."""
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

    labels = {**GATE["metadata"]["labels"], "try_number": "1"}
    cluster.pod({**GATE, "metadata": {**GATE["metadata"], "labels": labels}}, ended(3))
    remembered = {"name": NAME, "namespace": GATE["metadata"]["namespace"]}
    theirs = KubernetesPodOperator(
        task_id="gate_node",
        pod_template_dict=SECOND_START,
        random_name_suffix=False,
        durable=True,
        on_finish_action="keep_pod",
        kubernetes_conn_id=None,
        in_cluster=False,
        config_file=cluster.kubeconfig(tmp_path),
    )
    told = {**context(try_number=2), "task_state_store": {"pod_identifier": remembered}}

    found = theirs.get_or_create_pod(theirs.build_pod_request_obj(told), told)

    assert found.metadata.name == NAME
    assert SECOND_START["metadata"]["name"] not in cluster.pods


def test_a_name_that_is_taken_since_the_look_before_is_ours(run: Run, cluster: Cluster) -> None:
    cluster.pod(GATE, running(), running(), running(), ended())
    cluster.blind = 1

    run(GATE)

    assert cluster.asked.count(("create", "pods")) == 1
    assert list(cluster.pods) == [NAME]


def test_a_name_that_somebody_else_took_since_the_look_before_is_refused(run: Run, cluster: Cluster) -> None:
    foreign = {**GATE, "metadata": {**GATE["metadata"], "annotations": {"prunella.root": "s3://other"}}}
    cluster.pod(foreign, running())
    cluster.blind = 1

    with pytest.raises(ConfigError, match="somebody else made it"):
        run(GATE)


def test_a_pod_of_that_name_that_answers_something_else_is_refused(run: Run, cluster: Cluster) -> None:
    foreign = {**GATE, "metadata": {**GATE["metadata"], "annotations": {"prunella.root": "s3://other"}}}
    cluster.pod(foreign, running())

    with pytest.raises(ConfigError, match="somebody else made it"):
        run(GATE)


# ------------------------------------------------------------------------------------------------ rights


def test_the_installed_role_grants_what_the_operator_asks_for_and_no_more(
    operator: Callable[[Manifest], Any], cluster: Cluster
) -> None:
    task = operator(GATE)
    task.execute(context())

    task.on_kill()

    assert set(cluster.asked) == granted("pods", "pods/log") - {("list", "pods")}  # that is for TrainJobs
    assert cluster.refused == []
    assert cluster.pods == {}
