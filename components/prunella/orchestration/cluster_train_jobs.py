"""A stage that spans nodes as a Kubeflow TrainJob: made or found by its name, looked at until its end, deleted to stop it.

It is looked at every few seconds and not watched: a look needs one right less, and none is lost with a connection. Its end is
what its conditions say, or that it is gone; neither says anything of the stage, whose record does. While the cluster's API is
away nothing is known, so nothing has ended. Deleting is asked for in the foreground, so that the TrainJob stays until its pods
have saved and gone.
"""

import logging
import signal
import time
from typing import Any, ClassVar

from prunella.errors import ConfigError, PrunellaError
from prunella.launch.handle import Handle
from prunella.launch.kubernetes.naming import check_identity
from prunella.launch.kubernetes.pods import Manifest
from prunella.launch.kubernetes.trainjobs import API_VERSION, PLURAL
from prunella.orchestration import cluster

logger = logging.getLogger(__name__)

#: Conditions that end a TrainJob. Source: Kubeflow Trainer 2.3's API, 2026-11.
_ENDS = ("Complete", "Failed")


class TrainJob(Handle):
    """A TrainJob that was made, by the manifest it was made from."""

    poll_s: ClassVar[float] = 2.0

    def __init__(self, document: Manifest, *, grace_s: float) -> None:
        """`grace_s` is what its pods have between SIGTERM and SIGKILL. Raises ConfigError where there is no cluster."""
        from kubernetes.client import CustomObjectsApi

        metadata = document["metadata"]
        group, _, version = API_VERSION.partition("/")
        self._document = document
        self._place = {"group": group, "version": version, "namespace": metadata["namespace"], "plural": PLURAL}
        self._api = CustomObjectsApi(cluster.api_client())
        self._answered_s = time.monotonic()
        self._progress: Manifest = {}
        self.name = str(metadata["name"])
        self._grace_s = grace_s
        self._leaves_by_s: float | None = None
        self.has_started = False

    @property
    def is_leaving(self) -> bool:
        """Whether somebody has deleted it, and its pods are saving."""
        return self._leaves_by_s is not None

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
        """Whether the cluster has it, ended or not. Raises ClusterAway where the API stays away."""
        return cluster.outlast(self._read) is not None

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
        except cluster.ClusterAway as error:
            if time.monotonic() - self._answered_s > cluster.PATIENCE_S:
                raise
            logger.warning("train_job_out_of_sight name=%s error=%s", self.name, error)
            return True
        self._answered_s = time.monotonic()
        if found is None:
            logger.warning("train_job_gone name=%s", self.name)
            return False
        if found["metadata"].get("deletionTimestamp"):
            return self._may_leave()  # whatever its conditions say: its pods may be saving
        return self._goes_on(found.get("status") or {})

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
        self._tell_progress(status.get("trainerStatus") or {})
        ends = [one for one in status.get("conditions") or () if one["type"] in _ENDS and one["status"] == "True"]
        for end in ends:
            words = (end["type"], end.get("reason"), end.get("message"))
            logger.info("train_job_ended name=%s condition=%s reason=%s message=%s", self.name, *words)
        return not ends

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
                    **self._place, name=self.name, propagation_policy="Foreground", _request_timeout=cluster.TIMEOUT_S
                )
            )
        except ApiException as error:
            if error.status != cluster.NOT_THERE:
                raise


def _has_started(status: Manifest) -> bool:
    """Whether its pods ran, as far as Kubeflow counts: a job is ready when all of its pods run or have ended."""
    jobs = status.get("jobsStatus") or ()
    return any(job.get(count, 0) for job in jobs for count in ("ready", "succeeded", "failed"))
