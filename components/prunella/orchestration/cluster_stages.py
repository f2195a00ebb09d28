"""A stage as a pod or a TrainJob of a cluster: one start, made or found by its name and seen to its end, in an Airflow task.

What it answered is in the ledger, or nothing is and it vanished: whoever asked looks there, as with every other launcher. The
number of the start is in the name, so a second try of the task finds the pod of the first and never that of an earlier start.
Each pod stays off the nodes that the node ledger has cordoned; a gate goes onto its own node, that of a sweep also onto a
cordoned one.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from prunella.config import Config
from prunella.data_prep.sources import places, stdlib_folder
from prunella.errors import StorageUnavailable
from prunella.fleet.lifecycle import Fleet
from prunella.fleet.roster import FleetNode, load_fleet
from prunella.launch import door
from prunella.launch.kubernetes.naming import ClusterLaunch
from prunella.launch.kubernetes.pods import Manifest
from prunella.launch.kubernetes.render import manifest
from prunella.launch.kubernetes.settings import ClusterSettings, load_settings
from prunella.launch.kubernetes.trainjobs import SPANS_NODES
from prunella.launch.shell import STAGES
from prunella.ledger import Ledger
from prunella.orchestration import cluster
from prunella.orchestration.ask_stage import Asking, Unlaunchable, Watch, stage_output
from prunella.orchestration.cluster_train_jobs import TrainJob
from prunella.records import AttemptOpened, NodeState, Request, Stage

logger = logging.getLogger(__name__)

_LAST_WORDS_POLL_S = 1.0


def run_on_cluster(ledger: Ledger, key: str, request: Request, asking: Asking, index: int) -> None:
    """Run one start of a stage to its end, whoever began it.

    Args:
        index: which start it is, from 0.

    Raises:
        Unlaunchable: the stage cannot run on this cluster, or this is no task of an Airflow that can start pods.
        ConfigError: the cluster will never run it, or its name is somebody else's.
        ClusterAway: its API stays away.
    """
    settings = load_settings()
    if request.stage is Stage.DATA_PREP:  # the first step of a segment, where a refusal costs nothing yet
        _check_within_reach(ledger.config(), settings)
    launch = ClusterLaunch(
        request_key=key,
        request=request,
        start=index,
        excluded=() if request.stage is Stage.GATE_NODE else _cordoned(ledger, request),
        timeout_s=asking.timeout_s,
    )
    if request.stage in SPANS_NODES:
        _run_train_job(manifest(launch, settings), settings, asking, lambda: ledger.store.exists(request.output))
        if len(request.nodes) > 1:
            _wait_for_last_words(ledger, request, settings)
    else:
        _run_pod(manifest(launch, settings), settings)


def _check_within_reach(config: Config, settings: ClusterSettings) -> None:
    """Raises Unlaunchable for input on this machine that no pod sees: a pod sees the store, its image and the claim."""
    for place in places(config.data):
        is_claimed = bool(settings.claim) and place.is_relative_to(settings.claim_path)
        if place != stdlib_folder() and not is_claimed:
            raise Unlaunchable(
                f"data.inputs or data.tokenizer: {place} is on this machine, where no pod sees it; put it into the store and "
                "name it store:PREFIX, or into the volume of the cluster settings' `claim`"
            )


def _cordoned(ledger: Ledger, request: Request) -> tuple[str, ...]:
    """Nodes to stay off. One that was admitted is not among them, even if somebody cordoned it since."""
    states = Fleet(ledger.store).states(_fleet(ledger.config()))
    admitted = {node.name for node in request.nodes}
    return tuple(name for name, state in states.items() if state is NodeState.CORDONED and name not in admitted)


def _run_train_job(document: Manifest, settings: ClusterSettings, asking: Asking, has_answered: Callable[[], bool]) -> None:
    job = TrainJob(document, grace_s=settings.grace_s)
    job.make_or_find()
    asking.on_start(job)
    watch, overdue = Watch(job, asking), _Overdue(job, settings, has_answered)

    def on_poll() -> None:
        watch()
        if not job.is_leaving and overdue():
            door.stop(job, grace_s=0.0)

    door.wait(job, log=asking.scratch / f"{job.name}.log", on_poll=on_poll, on_line=stage_output.info)


class _Overdue:
    """Whether a TrainJob must be ended here, because the cluster will not: it was not started in time, or it stays although its
    stage has answered or all that is left of it is on a node that is dead."""

    def __init__(self, job: TrainJob, settings: ClusterSettings, has_answered: Callable[[], bool]) -> None:
        self._job = job
        self._settings = settings
        self._has_answered = has_answered
        self._begun_s = time.monotonic()
        self._answered_s: float | None = None

    def __call__(self) -> bool:
        job, grace_s, now_s = self._job, self._settings.grace_s, time.monotonic()
        if self._answered_s is None and self._is_answered():
            self._answered_s = now_s
        if self._answered_s is not None:
            return self._says(now_s - self._answered_s > grace_s, "train_job_outlives_its_answer", grace_s)
        if not job.has_started:
            startup_s = self._settings.startup_s
            return self._says(now_s - self._begun_s > startup_s, "train_job_never_started", startup_s)
        return self._says(job.idle_s > 2 * grace_s, "train_job_has_no_working_pod", 2 * grace_s)

    def _is_answered(self) -> bool:
        """A store that is away has told nothing."""
        try:
            return self._has_answered()
        except StorageUnavailable as error:
            logger.warning("answer_not_looked_for name=%s error=%s", self._job.name, error)
            return False

    def _says(self, is_overdue: bool, event: str, limit_s: float) -> bool:
        if is_overdue:
            logger.error("%s name=%s limit_s=%s pods=%s", event, self._job.name, limit_s, self._job.what_keeps_it())
        return is_overdue


def _wait_for_last_words(ledger: Ledger, request: Request, settings: ClusterSettings) -> None:
    """The first pod that fails ends a TrainJob, while the one that runs the stage may still be writing what came of it."""
    deadline_s = time.monotonic() + settings.grace_s
    while not ledger.store.exists(request.output) and time.monotonic() < deadline_s:
        time.sleep(_LAST_WORDS_POLL_S)


def stop_leftovers(ledger: Ledger, attempt: AttemptOpened) -> None:
    """Delete the TrainJobs of an unfinished attempt: they hold nodes that the next one needs. Single pods end by themselves."""
    settings = load_settings()
    for stage in sorted(SPANS_NODES):
        key = ledger.request_key(attempt.segment, attempt.attempt, stage)
        request = ledger.find(STAGES[stage][1], key)
        if request is None:
            continue
        for start in range(len(ledger.vanishings(request.output)) + 1):
            launch = ClusterLaunch(request_key=key, request=request, start=start)
            job = TrainJob(manifest(launch, settings), grace_s=settings.grace_s)
            if job.is_there() and job.is_alive:
                logger.warning("leftover_stopped handle=%s", job)
                door.stop(job, grace_s=settings.grace_s)


def _fleet(config: Config) -> tuple[FleetNode, ...]:
    return load_fleet(config.fleet, nodes=config.nodes)


def _run_pod(document: Manifest, settings: ClusterSettings) -> None:
    operator = _operator()(
        task_id=document["metadata"]["name"],
        pod_template_dict=document,
        startup_timeout_seconds=settings.startup_s,
        config_file=cluster.kubeconfig(),
    )
    try:
        operator.run_to_end(_context())
    except KeyboardInterrupt:
        operator.delete()
        raise


def _operator() -> Any:
    try:
        from prunella.orchestration.airflow_pods import StagePodOperator
    except ModuleNotFoundError as error:
        raise Unlaunchable(
            f"PRUNELLA_LAUNCH=kubernetes: {error}; pods are started by Airflow's Kubernetes provider: install "
            "prunella[cluster] beside Airflow (`make orchestrator`)"
        ) from error
    return StagePodOperator


def _context() -> Mapping[str, Any]:
    """Airflow's words about the running task. The operator may label its pod with them, and push nothing: XCom has one key."""
    from airflow.sdk import get_current_context

    try:
        context = get_current_context()
    except RuntimeError as error:
        raise Unlaunchable("PRUNELLA_LAUNCH=kubernetes: stages are started by Airflow's tasks only; this is none") from error
    return {**context, "ti": _Silent(context["ti"])}


class _Silent:
    """A task instance that keeps the pod's name out of XCom."""

    def __init__(self, ti: Any) -> None:
        self._ti = ti

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ti, name)

    def xcom_push(self, **_: Any) -> None:
        return
