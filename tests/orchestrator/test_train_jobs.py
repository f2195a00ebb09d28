"""Steps of the DAG whose stages span nodes: TrainJobs through the official client, against a stand-in for the API server."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api_double import GONE, Cluster, ended, granted, job_status, serving, unscheduled
from orchestrator.schemas import trainer_models
from prunella.config import CheckpointConfig, Config
from prunella.errors import ConfigError, PrunellaError
from prunella.orchestration import closing, stages
from prunella.orchestration import cluster as door
from prunella.orchestration.claim import SegmentRun
from prunella.orchestration.cluster_train_jobs import TrainJob
from prunella.orchestration.opening import open_attempt, open_segment
from prunella.records import GateFabricRecord, GateNodeRecord, Health, NodeRef, Stage, StopReason, TrainRecord, Verdict
from unit.launch.kubernetes.examples import examples
from unit.orchestration.story import OPENED_NS, SECOND, Story

pytest.importorskip("kubernetes.client")

MADE, RUNS = job_status(), job_status(ready=1)
COMPLETE, FAILED = job_status(ended="Complete"), job_status(ended="Failed")
#: One of its pods failed, and another one cannot leave a node that is dead: its Job never gets a condition.
STUCK = job_status(active=0)
ALONE = (NodeRef(name="node-0"),)


@pytest.fixture
def run(root: str, tmp_path: Path) -> SegmentRun:
    """An attempt whose fabric was admitted, over the one node of its fleet."""
    (tmp_path / "fleet.yaml").write_text("nodes:\n  - {name: node-0, role: active, devices: 1}\n")
    checkpoint = CheckpointConfig(interval_steps=5)
    config = Config(nodes=1, fleet=str(tmp_path / "fleet.yaml"), segments=2, steps_per_segment=20, checkpoint=checkpoint)
    story = Story(root=root, config=config).begin()
    run = story.open_run()
    story.prepare_data(of=run)
    open_attempt(run, 0)
    return run


@pytest.fixture
def admitted(run: SegmentRun) -> SegmentRun:
    """The same, with the fabric admitted."""
    record = GateFabricRecord(
        stage=Stage.GATE_FABRIC,
        verdict=Verdict.ACCEPTED,
        started_ns=OPENED_NS,
        ended_ns=OPENED_NS + SECOND,
        admitted=ALONE,
        health={},
        checks=(),
    )
    run.ledger().put(run.ledger().record_key(0, 0, Stage.GATE_FABRIC), record)
    return run


@pytest.fixture
def cluster(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster on which the root is a volume. The pauses are left out."""
    settings = tmp_path / "cluster.toml"
    settings.write_text(f'claim = "prunella-root"\nclaim_path = "{root}"\n')
    monkeypatch.setattr(door, "_FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(TrainJob, "poll_s", 0.01)
    with serving(Cluster(plan=[MADE, RUNS, RUNS, COMPLETE])) as cluster:
        monkeypatch.setenv("PRUNELLA_LAUNCH", "kubernetes")
        monkeypatch.setenv("PRUNELLA_CLUSTER", str(settings))
        monkeypatch.setenv("KUBECONFIG", cluster.kubeconfig(tmp_path))
        yield cluster


def trained(run: SegmentRun, stopped_by: StopReason = StopReason.END) -> Callable[[dict[str, Any]], None]:
    """A training segment that answers."""

    def answer(_job: dict[str, Any]) -> None:
        record = TrainRecord(
            stage=Stage.TRAINING_SEGMENT,
            verdict=Verdict.ACCEPTED,
            started_ns=OPENED_NS,
            ended_ns=OPENED_NS + SECOND,
            stopped_by=stopped_by,
            first_step=1,
            last_step=20,
            candidates=0,
            world_size=1,
            exits=(),
        )
        run.ledger().put(run.ledger().record_key(0, 0, Stage.TRAINING_SEGMENT), record)

    return answer


def train(run: SegmentRun, kept: list[dict[str, Any]] | None = None) -> TrainRecord | None:
    """What `train_segment` leaves in the ledger."""
    key = stages.train_segment(run, 0, lambda handle: (kept if kept is not None else []).append(handle.words()))
    return run.ledger().find_stage_record(TrainRecord, key)


def the_job(cluster: Cluster) -> dict[str, Any]:
    (job,) = cluster.jobs.values()
    return job


# ------------------------------------------------------------------------------------------------ to its end


def test_training_is_a_train_job_and_its_record_is_what_counts(admitted: SegmentRun, cluster: Cluster) -> None:
    cluster.on_create = trained(admitted)
    kept: list[dict[str, Any]] = []

    record = train(admitted, kept)

    job = the_job(cluster)
    assert isinstance(record, TrainRecord)
    assert job["spec"]["trainer"]["numNodes"] == 1
    assert job["metadata"]["annotations"]["prunella.request"].endswith("requests/training_segment.json")
    assert kept == [{"trainjob": job["metadata"]["name"], "namespace": "prunella"}]
    assert cluster.plan == [COMPLETE]
    assert cluster.refused == []


def test_the_gate_of_the_links_is_a_train_job_too(run: SegmentRun, cluster: Cluster) -> None:
    story = Story(root=run.root, config=run.ledger().config())
    story.put_record(run.ledger().attempts(0)[0], "gate_node-node-0", gate_record())

    key = stages.gate_fabric(run, 0, lambda handle: None)

    starts = [job["metadata"]["labels"]["prunella.start"] for job in cluster.jobs.values()]
    assert starts == ["0", "1", "2"], "it vanished each time, and may be started anew"
    assert len(run.ledger().vanishings(key)) == 3


def gate_record() -> GateNodeRecord:
    return GateNodeRecord(
        stage=Stage.GATE_NODE,
        verdict=Verdict.ACCEPTED,
        started_ns=OPENED_NS,
        ended_ns=OPENED_NS + SECOND,
        node="node-0",
        health=Health.HEALTHY,
        checks=(),
    )


@pytest.mark.parametrize(
    "plan",
    [[MADE, RUNS, FAILED], [MADE, FAILED], [MADE, RUNS, GONE], [MADE, GONE], [FAILED]],
    ids=["failed", "evicted while pending", "gone while running", "gone while pending", "failed at once"],
)
def test_training_that_leaves_no_record_has_vanished_and_is_never_made_again(
    admitted: SegmentRun, cluster: Cluster, plan: list[dict[str, Any]]
) -> None:
    cluster.plan = plan

    assert train(admitted) is None
    assert train(admitted) is None, "nor by a second try"

    assert [verb for verb, _ in cluster.asked].count("create") == 1
    assert len(admitted.ledger().vanishings(admitted.ledger().record_key(0, 0, Stage.TRAINING_SEGMENT))) == 1


def test_a_record_counts_although_the_train_job_failed(admitted: SegmentRun, cluster: Cluster) -> None:
    cluster.on_create = trained(admitted)
    cluster.plan = [RUNS, FAILED]

    assert isinstance(train(admitted), TrainRecord)


def test_a_train_job_that_the_cluster_does_not_start_in_time_is_deleted(
    admitted: SegmentRun, cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (tmp_path / "cluster.toml").open("a") as file:
        file.write("startup_s = 0\n")
    cluster.plan, cluster.leaving = [MADE], 2
    cluster.pod_of_job = unscheduled("0/3 nodes are available: 3 Insufficient memory.")

    assert train(admitted) is None

    assert cluster.jobs == {}
    assert cluster.leaving < 0, "its pods were waited for"
    assert "train_job_never_started" in caplog.text
    assert "-node-0-0: Unschedulable: 0/3 nodes are available: 3 Insufficient memory." in caplog.text


def test_a_train_job_that_stays_after_its_stage_has_answered_is_ended(
    admitted: SegmentRun, cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (tmp_path / "cluster.toml").open("a") as file:
        file.write("grace_s = 0\n")
    cluster.plan = [RUNS]
    cluster.on_look = lambda name: trained(admitted)({}) if len(cluster.asked) == 6 else None

    assert isinstance(train(admitted), TrainRecord)

    assert "train_job_outlives_its_answer" in caplog.text
    assert cluster.jobs == {}


def test_a_train_job_of_which_only_a_pod_on_a_dead_node_is_left_is_ended_and_has_vanished(
    admitted: SegmentRun, cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (tmp_path / "cluster.toml").open("a") as file:
        file.write("grace_s = 0\n")
    cluster.plan, cluster.leaving = [MADE, RUNS, STUCK], 10_000

    assert train(admitted) is None

    assert "train_job_has_no_working_pod" in caplog.text
    assert "train_job_does_not_leave" in caplog.text
    assert cluster.jobs == {}


def test_a_train_job_whose_pods_are_started_anew_in_time_goes_on(admitted: SegmentRun, cluster: Cluster) -> None:
    cluster.on_create = trained(admitted)
    cluster.plan = [MADE, RUNS, STUCK, STUCK, RUNS, RUNS, COMPLETE]

    assert isinstance(train(admitted), TrainRecord)
    assert len(cluster.jobs) == 1


def test_the_pods_of_a_train_job_that_somebody_deletes_have_their_time_to_save(admitted: SegmentRun, cluster: Cluster) -> None:
    cluster.plan, cluster.leaving = [MADE, RUNS, GONE], 3
    saved = trained(admitted, StopReason.SIGNAL)
    cluster.on_look = lambda name: saved({}) if cluster.leaving == 1 else None

    assert isinstance(train(admitted), TrainRecord)


def test_pods_that_are_over_are_not_waited_for(admitted: SegmentRun, cluster: Cluster) -> None:
    cluster.plan, cluster.leaving = [MADE, RUNS, GONE], 10_000
    cluster.pod_of_job = ended(1)

    assert train(admitted) is None


def test_a_train_job_that_somebody_deletes_in_the_foreground_is_waited_for(admitted: SegmentRun, cluster: Cluster) -> None:
    cluster.plan, cluster.leaving = [MADE, RUNS, FAILED], 3
    saved = trained(admitted, StopReason.SIGNAL)

    def look(name: str) -> None:
        if cluster.plan == [FAILED] and name in cluster.jobs:
            cluster.jobs[name]["metadata"]["deletionTimestamp"] = "2026-11-21T09:00:00Z"
        if cluster.leaving == 1:
            saved({})

    cluster.on_look = look

    assert isinstance(train(admitted), TrainRecord)


def test_a_train_job_whose_pods_cannot_leave_a_dead_node_is_not_waited_for_for_ever(
    admitted: SegmentRun, cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (tmp_path / "cluster.toml").open("a") as file:
        file.write("startup_s = 0\ngrace_s = 0\n")
    cluster.plan, cluster.leaving = [MADE], 10_000

    assert train(admitted) is None

    assert "train_job_does_not_leave" in caplog.text


# ------------------------------------------------------------------------------------------------ progress


def test_what_the_stage_reports_to_kubeflow_is_shown_once_each_time_it_is_news(
    admitted: SegmentRun, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.on_create = trained(admitted)
    half = job_status(ready=1, progressPercentage=50, metrics=[{"name": "loss", "value": "4.2"}])
    most = job_status(ready=1, progressPercentage=90, estimatedRemainingSeconds=12)
    cluster.plan = [RUNS, half, half, most, COMPLETE]
    caplog.set_level("INFO")

    train(admitted)

    told = [record.getMessage().partition("percent=")[2] for record in caplog.records if "train_job_progress" in record.message]
    assert told == ["50 remaining_s=None metrics={'loss': '4.2'}", "90 remaining_s=12 metrics={}"]


@pytest.mark.parametrize("status", [MADE, RUNS, COMPLETE, job_status(progressPercentage=50, estimatedRemainingSeconds=9)])
def test_what_the_stand_in_says_of_a_train_job_is_what_kubeflow_can_say(status: dict[str, Any]) -> None:
    model = trainer_models().TrainerV1alpha1TrainJobStatus.from_dict(status)

    said = json.dumps(model.to_dict(), default=lambda time: time.isoformat().replace("+00:00", "Z"))
    assert json.loads(said) == status


# ------------------------------------------------------------------------------------------------ found again


def test_a_second_try_looks_at_the_train_job_of_the_first_until_its_end(
    admitted: SegmentRun, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(_WorkerDied):
        stages.train_segment(admitted, 0, _die)
    cluster.plan = [RUNS, RUNS, RUNS, COMPLETE]
    cluster.on_look = lambda name: trained(admitted)({}) if cluster.plan == [COMPLETE] else None
    caplog.set_level("INFO")

    record = train(admitted)

    assert isinstance(record, TrainRecord)
    assert f"train_job_reattached name={the_job(cluster)['metadata']['name']}" in caplog.text


class _WorkerDied(Exception):
    """Stands for the death of an Airflow worker, right after the TrainJob was made."""


def _die(_handle: Any) -> None:
    raise _WorkerDied


def test_a_name_that_is_taken_since_the_look_before_is_ours(admitted: SegmentRun, cluster: Cluster) -> None:
    with pytest.raises(_WorkerDied):
        stages.train_segment(admitted, 0, _die)
    cluster.blind = 1
    cluster.plan = [RUNS, COMPLETE]

    assert train(admitted) is None

    assert [verb for verb, _ in cluster.asked].count("create") == 2
    assert len(cluster.jobs) == 1


def test_a_train_job_of_that_name_that_answers_something_else_is_refused(admitted: SegmentRun, cluster: Cluster) -> None:
    with pytest.raises(_WorkerDied):
        stages.train_segment(admitted, 0, _die)
    the_job(cluster)["metadata"]["annotations"]["prunella.root"] = "s3://other"

    with pytest.raises(ConfigError, match="somebody else made it"):
        train(admitted)


# ------------------------------------------------------------------------------------------------ trouble


def test_an_api_that_is_away_ends_nothing(admitted: SegmentRun, cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    cluster.on_create = trained(admitted)
    cluster.plan = [RUNS, RUNS, COMPLETE]
    looks: list[str] = []

    def look(name: str) -> None:
        looks.append(name)
        if len(looks) == 2:
            cluster.unavailable = 12

    cluster.on_look = look

    assert isinstance(train(admitted), TrainRecord)

    assert caplog.text.count("train_job_out_of_sight") == 2
    assert cluster.unavailable == 0


def test_a_train_job_is_made_or_found_by_a_try_that_begins_while_the_api_is_away(
    admitted: SegmentRun, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """More lost answers, and then more refusals, than a round of tries."""
    cluster.lost_answers = 7
    with pytest.raises(_WorkerDied):
        stages.train_segment(admitted, 0, _die)
    cluster.unavailable = 12
    cluster.plan = [RUNS, COMPLETE]

    assert train(admitted) is None

    assert caplog.text.count("cluster_away") == 3
    assert "train_job_out_of_sight" not in caplog.text
    assert len(cluster.jobs) == 1


def test_an_api_that_stays_away_fails_the_try_and_the_next_one_goes_on(
    admitted: SegmentRun, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "PATIENCE_S", -1.0)
    cluster.plan = [RUNS, COMPLETE]
    cluster.away_after = 3
    with pytest.raises(PrunellaError, match="does not answer"):
        train(admitted)
    cluster.away_after = None
    trained(admitted)({})

    assert isinstance(train(admitted), TrainRecord)


def test_a_train_job_that_kubeflow_does_not_know_is_refused_with_its_words(admitted: SegmentRun, cluster: Cluster) -> None:
    document = {**examples()["training_segment"], "spec": {"trainer": {"numNodes": "1"}}}

    with pytest.raises(ConfigError, match="the cluster refuses it: 422"):
        TrainJob(document, grace_s=1.0).make_or_find()

    assert cluster.jobs == {}


# ------------------------------------------------------------------------------------------------ several nodes


@pytest.fixture
def on_two_nodes(run: SegmentRun) -> SegmentRun:
    """The fabric of two nodes admitted."""
    record = GateFabricRecord(
        stage=Stage.GATE_FABRIC,
        verdict=Verdict.ACCEPTED,
        started_ns=OPENED_NS,
        ended_ns=OPENED_NS + SECOND,
        admitted=(*ALONE, NodeRef(name="node-1")),
        health={},
        checks=(),
    )
    run.ledger().put(run.ledger().record_key(0, 0, Stage.GATE_FABRIC), record)
    return run


def test_training_on_two_nodes_is_a_train_job_of_two_pods(on_two_nodes: SegmentRun, cluster: Cluster) -> None:
    cluster.on_create = trained(on_two_nodes)

    record = train(on_two_nodes)

    assert isinstance(record, TrainRecord)
    assert the_job(cluster)["spec"]["trainer"]["numNodes"] == 2
    assert cluster.refused == []


def test_after_one_pod_failed_the_one_that_runs_the_stage_may_still_write_its_record(
    on_two_nodes: SegmentRun, cluster: Cluster
) -> None:
    cluster.plan = [MADE, RUNS, FAILED]
    answers: list[threading.Timer] = []

    def answer_late(job: dict[str, Any]) -> None:
        answers.append(threading.Timer(2.0, trained(on_two_nodes), [job]))
        answers[0].start()

    cluster.on_create = answer_late

    assert isinstance(train(on_two_nodes), TrainRecord)
    answers[0].join()


def test_of_two_pods_that_left_no_record_training_has_vanished(
    on_two_nodes: SegmentRun, cluster: Cluster, tmp_path: Path
) -> None:
    with (tmp_path / "cluster.toml").open("a") as file:
        file.write("grace_s = 0\n")
    cluster.plan = [MADE, RUNS, FAILED]

    assert train(on_two_nodes) is None
    assert len(cluster.jobs) == 1


# ------------------------------------------------------------------------------------------------ stop


def test_an_operators_stop_deletes_the_train_job_and_waits_until_it_has_saved(
    admitted: SegmentRun, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunella.orchestration.ask_stage.PASS_ON_S", 0.0)
    cluster.plan, cluster.leaving = [RUNS, FAILED], 3
    saved = trained(admitted, StopReason.SIGNAL)
    cluster.on_look = lambda name: saved({}) if cluster.leaving == 1 else None
    closing.request_stop(admitted.ledger(), "for the night")

    record = train(admitted)

    assert isinstance(record, TrainRecord)
    assert record.stopped_by is StopReason.SIGNAL
    assert cluster.jobs == {}


def test_what_a_dead_run_left_training_is_deleted_before_the_next_attempt(admitted: SegmentRun, cluster: Cluster) -> None:
    with pytest.raises(_WorkerDied):
        stages.train_segment(admitted, 0, _die)
    cluster.plan, cluster.leaving = [RUNS], 2

    open_segment(Story(root=admitted.root, config=admitted.ledger().config()).open_run(0, 1))

    assert cluster.jobs == {}
    assert cluster.refused == []


def test_a_train_job_that_ended_is_left_where_it_is(admitted: SegmentRun, cluster: Cluster) -> None:
    with pytest.raises(_WorkerDied):
        stages.train_segment(admitted, 0, _die)
    cluster.plan = [FAILED]

    open_segment(Story(root=admitted.root, config=admitted.ledger().config()).open_run(0, 1))

    assert len(cluster.jobs) == 1


def test_an_interrupt_deletes_the_train_job(admitted: SegmentRun, cluster: Cluster) -> None:
    """A real SIGINT, while it runs."""
    cluster.plan = [RUNS]
    cluster.on_look = lambda name: signal.raise_signal(signal.SIGINT) if len(cluster.asked) == 4 else None

    with pytest.raises(KeyboardInterrupt):
        train(admitted)

    assert cluster.jobs == {}


def test_the_installed_role_grants_what_a_train_job_takes_and_no_more(admitted: SegmentRun, cluster: Cluster) -> None:
    cluster.plan = [RUNS]
    cluster.on_look = lambda name: signal.raise_signal(signal.SIGINT) if len(cluster.asked) == 4 else None
    with pytest.raises(KeyboardInterrupt):
        train(admitted)

    assert set(cluster.asked) == granted("trainjobs") | {("list", "pods")}
    assert cluster.refused == []
