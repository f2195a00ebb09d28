"""A stage that spans nodes as a Kubeflow TrainJob: made or found by its name, looked at until its end, deleted to stop it.

It is looked at every few seconds and not watched: a look needs one right less, and none is lost with a connection. Its end is
what its conditions say, or that it and its pods are gone; neither says anything of the stage, whose record does. While the
cluster's API is away nothing is known, so nothing has ended.

It is deleted in the background, so that the TrainJob goes first and its pods, which are looked for by their label, save and go
after it. In the foreground it would stay until its JobSet has gone, and Kubeflow makes the JobSet of any TrainJob that is there
and has none, and with it the pods: the same training a second time. Source: `Reconcile` of Trainer's controller, 2026-11.
"""

import logging
import signal
import time
from typing import Any, ClassVar

from prunella.errors import ConfigError, PrunellaError
from prunella.launch.handle import Handle
from prunella.launch.kubernetes.naming import LAUNCH_LABEL, check_identity
from prunella.launch.kubernetes.pods import Manifest
from prunella.launch.kubernetes.trainjobs import API_VERSION, PLURAL
from prunella.orchestration import cluster

logger = logging.getLogger(__name__)

#: Conditions that end a TrainJob. Source: Kubeflow Trainer 2.3's API, 2026-11.
_ENDS = ("Complete", "Failed")
#: Phases of a pod that is over. Source: Kubernetes' API, 2026-11.
_OVER = ("Succeeded", "Failed")
#: What Kubeflow counts the jobs of a TrainJob by while any of them has, had or will have a pod. Source: Trainer 2.3's API.
_COUNTS = ("active", "ready", "succeeded", "failed", "suspended")


class TrainJob(Handle):
    """A TrainJob that was made, by the manifest it was made from."""

    poll_s: ClassVar[float] = 2.0

    def __init__(self, document: Manifest, *, grace_s: float) -> None:
        """`grace_s` is what its pods have between SIGTERM and SIGKILL. Raises ConfigError where there is no cluster."""
        from kubernetes.client import CoreV1Api, CustomObjectsApi

        metadata = document["metadata"]
        group, _, version = API_VERSION.partition("/")
        self._document = document
        self._place = {"group": group, "version": version, "namespace": metadata["namespace"], "plural": PLURAL}
        client = cluster.api_client()
        self._api, self._core = CustomObjectsApi(client), CoreV1Api(client)
        self._answered_s = time.monotonic()
        self._progress: Manifest = {}
        self.name = str(metadata["name"])
        self._grace_s = grace_s
        self._leaves_by_s: float | None = None
        self._idle_since_s: float | None = None
        self._is_known = False
        self.has_started = False

    @property
    def is_leaving(self) -> bool:
        """Whether somebody has deleted it, and its pods are saving."""
        return self._leaves_by_s is not None

    @property
    def idle_s(self) -> float:
        """For how long it has had no pod that works, and yet no end, in seconds. A Job that failed ends once all of its pods
        have, and one on a node that is dead never does: it is told to go, counts no more, and stays."""
        return 0.0 if self._idle_since_s is None else time.monotonic() - self._idle_since_s

    def __str__(self) -> str:
        return f"trainjob {self.name}"

    def words(self) -> dict[str, Any]:
        return {"trainjob": self.name, "namespace": self._place["namespace"]}

    def make_or_find(self) -> None:
        """Make it, unless somebody has.

        Raises:
            ConfigError: the name belongs to something else, or the cluster refuses such a TrainJob.
            ClusterAway: the API stays away.
        """
        found = cluster.outlast(self._read)
        if found is not None:
            logger.info("train_job_reattached name=%s", self.name)
        else:
            found = cluster.outlast(self._create)
        self._answered_s = time.monotonic()
        check_identity(str(self), self._document["metadata"]["annotations"], found["metadata"].get("annotations"))

    def is_there(self) -> bool:
        """Whether the cluster has it, ended or not, or pods of it that work. Raises ClusterAway where the API stays away."""
        return cluster.outlast(self._read) is not None or bool(cluster.outlast(self._working_pods))

    def _create(self) -> Manifest:
        """Whoever comes second, or whose first answer was lost, finds it there."""
        from kubernetes.client import ApiException

        try:
            made: Manifest = self._api.create_namespaced_custom_object(
                **self._place, body=self._document, _request_timeout=cluster.TIMEOUT_S
            )
            logger.info("train_job_made name=%s", self.name)
        except ApiException as error:
            if error.status in cluster.PASSING:
                raise
            there = self._read() if error.status == cluster.CONFLICT else None
            if there is None:
                raise ConfigError(f"{self}: the cluster refuses it: {cluster.words(error)}") from error
            return there
        return made

    def _read(self) -> Manifest | None:
        """As the cluster has it now; None when it has none of that name."""
        from kubernetes.client import ApiException

        try:
            found: Manifest = cluster.patiently(
                lambda: self._api.get_namespaced_custom_object(
                    **self._place, name=self.name, _request_timeout=cluster.TIMEOUT_S
                )
            )
        except ApiException as error:
            if error.status != cluster.NOT_THERE:
                raise PrunellaError(f"{self}: the cluster's API says {cluster.words(error)}") from error
            return None
        return found

    @property
    def is_alive(self) -> bool:
        try:
            found = self._read()
            pods = self._working_pods() if found is None else []
        except cluster.ClusterAway as error:
            if time.monotonic() - self._answered_s > cluster.PATIENCE_S:
                raise
            logger.warning("train_job_out_of_sight name=%s error=%s", self.name, error)
            return True
        self._answered_s = time.monotonic()
        if found is None:
            return self._pods_go_on(pods)
        self._is_known = True
        if found["metadata"].get("deletionTimestamp"):
            return self._may_leave()  # whatever its conditions say: its pods may be saving
        return self._goes_on(found.get("status") or {})

    def _pods_go_on(self, pods: list[Any]) -> bool:
        """Somebody deleted it; its pods have their grace."""
        if self._is_known:
            self._is_known = False
            logger.warning("train_job_gone name=%s pods=%s", self.name, len(pods))
        return bool(pods) and self._may_leave()

    def _pods(self) -> list[Any]:
        """Those of its pods that the cluster has, each a `kubernetes.client.V1Pod`."""
        from kubernetes.client import ApiException

        asked = {"label_selector": f"{LAUNCH_LABEL}={self.name}", "_request_timeout": cluster.TIMEOUT_S}
        try:
            found = cluster.patiently(lambda: self._core.list_namespaced_pod(self._place["namespace"], **asked))
        except ApiException as error:
            raise PrunellaError(f"{self}: the cluster's API says of its pods {cluster.words(error)}") from error
        pods: list[Any] = found.items
        return pods

    def _working_pods(self) -> list[Any]:
        return [pod for pod in self._pods() if pod.status.phase not in _OVER]

    def what_keeps_it(self) -> str:
        """Why its pods do not run, as the cluster words it; empty where it does not say."""
        return "; ".join(f"{pod.metadata.name}: {words}" for pod in self._pods() if (words := cluster.what_keeps(pod)))

    def _may_leave(self) -> bool:
        """Whether there is time left for its pods to go. Those on a node that is dead never do."""
        now_s = time.monotonic()
        if self._leaves_by_s is None:
            self._leaves_by_s = now_s + 2 * self._grace_s
        if now_s > self._leaves_by_s:
            logger.error("train_job_does_not_leave name=%s grace_s=%s", self.name, self._grace_s)
        return now_s <= self._leaves_by_s

    def _goes_on(self, status: Manifest) -> bool:
        self.has_started = self.has_started or _has_started(status)
        self._note_idleness(status)
        self._tell_progress(status.get("trainerStatus") or {})
        ends = [one for one in status.get("conditions") or () if one["type"] in _ENDS and one["status"] == "True"]
        for end in ends:
            words = (end["type"], end.get("reason"), end.get("message"))
            logger.info("train_job_ended name=%s condition=%s reason=%s message=%s", self.name, *words)
        return not ends

    def _note_idleness(self, status: Manifest) -> None:
        jobs = status.get("jobsStatus") or ()
        if not self.has_started or any(job.get(count, 0) for job in jobs for count in _COUNTS):
            self._idle_since_s = None
        elif self._idle_since_s is None:
            self._idle_since_s = time.monotonic()

    def _tell_progress(self, told: Manifest) -> None:
        """What the stage itself reports to Kubeflow, each time it is news."""
        if told and told != self._progress:
            self._progress = told
            metrics = {metric["name"]: metric["value"] for metric in told.get("metrics") or ()}
            words = (told.get("progressPercentage"), told.get("estimatedRemainingSeconds"), metrics)
            logger.info("train_job_progress name=%s percent=%s remaining_s=%s metrics=%s", self.name, *words)

    def send(self, number: signal.Signals) -> None:
        """Whatever the signal: delete it, which sends SIGTERM to its pods and, after their grace, SIGKILL."""
        from kubernetes.client import ApiException

        try:
            cluster.patiently(
                lambda: self._api.delete_namespaced_custom_object(
                    **self._place, name=self.name, propagation_policy="Background", _request_timeout=cluster.TIMEOUT_S
                )
            )
        except ApiException as error:
            if error.status != cluster.NOT_THERE:
                raise


def _has_started(status: Manifest) -> bool:
    """Whether its pods ran, as far as Kubeflow counts: a job is ready when all of its pods run or have ended."""
    jobs = status.get("jobsStatus") or ()
    return any(job.get(count, 0) for job in jobs for count in ("ready", "succeeded", "failed"))
