"""A start of a stage as an Airflow task: the pod is made, or found by its name, watched, and its log shown.

Trusts the name, which is the handle of one start, and nothing that Airflow remembers of earlier tries: its own re-attach may
find a finished pod of an earlier start. How the pod ended says nothing of the stage: the record does, and a missing record does
too, and a log that cannot be read says nothing at all. So this task is red only when the cluster could not be asked for half an
hour, or will never run such a pod. Runs where Airflow's Kubernetes provider is installed.
"""

import datetime
import logging
import time
from functools import cached_property
from typing import Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.utils.pod_manager import (
    PodLaunchFailedException,
    PodLaunchTimeoutException,
    PodManager,
    PodPhase,
)
from kubernetes.client.exceptions import ApiException

from prunella.errors import ConfigError, PrunellaError
from prunella.launch.kubernetes.naming import check_identity
from prunella.launch.kubernetes.pods import CONTAINER
from prunella.launch.kubernetes.settings import ClusterSettings
from prunella.orchestration import cluster

logger = logging.getLogger(__name__)


#: How long after its time to go a deleted pod may still be there. Source: own choice 2026-11, above the skew of two clocks.
_LEFT_BEHIND = datetime.timedelta(seconds=120)
#: Pause before a log that could not be read is asked for again. Source: own choice 2026-11: as long as the provider tries.
_LOG_PAUSE_S = 15.0
#: Pause before a pod whose image could not be pulled is looked at again. Source: own choice 2026-11: kubelets begin with 10 s.
_PULL_PAUSE_S = 10.0
#: Why an image is never pulled, in the words of kubelets and registries; every other reason may pass, or is one node's own
#: (a full disk, a network). Source: Kubernetes' reasons of waiting containers and the error codes of OCI's distribution
#: specification 1.1, 2026-11.
_NEVER_PULLED = (
    "InvalidImageName",
    "ErrImageNeverPull",
    "not found",
    "manifest unknown",
    "name unknown",
    "unauthorized",
    "denied",
    "authentication required",
    "no match for platform",
)
#: A container whose secret, config map or key in one is not there waits with this reason until somebody makes it.
_MISCONFIGURED = "CreateContainerConfigError"


class _NeverStarted(PrunellaError):
    """The cluster had no place for the pod, or did not start it, for as long as a start may take."""


class _LogUnreadable(PrunellaError):
    """The pod is there, or was, and its log cannot be had: its kubelet restarts, or nothing ever wrote one."""


class _PodManager(PodManager):
    """Airflow's own, but that it waits out an API that is away, that a pod which cannot leave is gone (on a node that is dead
    nobody is there to end it), and that it says what keeps a pod from running."""

    _told = ""

    def read_pod(self, pod: Any) -> Any:
        place = (pod.metadata.name, pod.metadata.namespace)
        found = cluster.outlast(lambda: self._client.read_namespaced_pod(*place, _request_timeout=cluster.TIMEOUT_S))
        due = found.metadata.deletion_timestamp  # already later than the deletion, by the pod's grace
        if due is not None and datetime.datetime.now(datetime.UTC) - due > _LEFT_BEHIND:
            raise ApiException(status=cluster.NOT_THERE, reason=f"to be gone since {due}, its node does not answer")
        self._tell(found)
        return found

    def _tell(self, pod: Any) -> None:
        words = cluster.what_keeps(pod)
        if words != self._told:
            self._told = words
            logger.info("stage_pod_waits pod=%s for=%s", pod.metadata.name, words or "nothing any more")

    def find_pod(self, pod: Any) -> Any | None:
        """The pod of that name; None when there is none."""
        try:
            return self.read_pod(pod)
        except ApiException as error:
            if error.status != cluster.NOT_THERE:
                raise
            return None

    def create_pod(self, pod: Any) -> Any:
        """Whoever comes second, or whose first answer was lost, finds it there."""
        return cluster.outlast(lambda: self._create_or_find(pod), also=(cluster.CONFLICT,))

    def _create_or_find(self, pod: Any) -> Any:
        try:
            return self._client.create_namespaced_pod(pod.metadata.namespace, pod, _request_timeout=cluster.TIMEOUT_S)
        except ApiException as error:
            there = self.find_pod(pod) if error.status == cluster.CONFLICT else None
            if there is None:  # refused; or the conflict is about something else, such as a quota that others draw on
                raise
            return there

    def read_pod_logs(self, pod: Any, container_name: str, **arguments: Any) -> Any:
        try:
            return super().read_pod_logs(pod, container_name, **arguments)
        except ApiException as error:
            if error.status == cluster.UNAUTHORIZED:  # the operator asks again with new credentials
                raise
            raise _LogUnreadable(cluster.words(error)) from error


class StagePodOperator(KubernetesPodOperator):
    """Runs the pod that `pod_template_dict` describes, as `prunella.launch.kubernetes` renders it.

    A finished pod is kept: its name refuses a second pod for the same start. Killing the task deletes the pod, which gives the
    stage its time to save.
    """

    def __init__(self, **arguments: Any) -> None:
        arguments.setdefault("startup_timeout_seconds", ClusterSettings().startup_s)
        super().__init__(
            random_name_suffix=False,
            durable=False,
            do_xcom_push=False,
            base_container_name=CONTAINER,
            on_finish_action="keep_pod",
            log_events_on_startup=False,
            kubernetes_conn_id=None,
            deferrable=False,  # the triggerer would look for the pod in Airflow's own way
            **arguments,
        )

    @cached_property
    def pod_manager(self) -> _PodManager:
        """The provider's name for who reads pods and their logs."""
        return _PodManager(kube_client=self.client, callbacks=self.callbacks)

    def execute(self, context: Any) -> None:
        """As a task of its own."""
        self.run_to_end(context)

    def run_to_end(self, context: Any) -> None:
        """Make or find the pod, and watch it to its end: also inside another task. A pod that is gone has ended.

        Raises:
            ConfigError: the name belongs to something else, or the cluster will never run such a pod.
            ClusterAway: the API stays away.
        """
        try:
            self.execute_sync(context)
        except _NeverStarted as error:
            logger.error("stage_pod_never_started %s", error)
        except ApiException as error:
            if error.status != cluster.NOT_THERE or self.pod is None:
                raise
            logger.warning("stage_pod_gone pod=%s", self.pod.metadata.name)

    def get_or_create_pod(self, pod_request_obj: Any, context: Any) -> Any:
        """The pod of this start, made now if nobody has. Raises ConfigError where its name belongs to something else."""
        found = self.pod_manager.find_pod(pod_request_obj)
        if found is None:
            found = self.pod_manager.create_pod(pod_request_obj)
        else:
            logger.info("stage_pod_reattached pod=%s phase=%s", found.metadata.name, found.status.phase)
        wanted, has = pod_request_obj.metadata, found.metadata
        check_identity(f"pod {has.name}", wanted.annotations, has.annotations)
        return found

    def find_pod(self, namespace: str, context: Any, *, exclude_checked: bool = True) -> Any:
        """The pod of this start, by its name."""
        return self.pod_manager.read_pod(self.pod or self.pod_request_obj)

    def await_pod_start(self, pod: Any) -> None:
        """Wait until it runs, or until it is clear that it never will: an eviction ends a pod like anything else.

        A pod that does not start is ended here, so that it cannot start later beside its successor.
        """
        deadline_s = time.monotonic() + self.startup_timeout_seconds
        while not self._is_past_start(pod, deadline_s):
            time.sleep(_PULL_PAUSE_S)

    def _is_past_start(self, pod: Any, deadline_s: float) -> bool:
        """Whether it runs, or has ended without; False while its image may still come."""
        name = pod.metadata.name
        try:
            super().await_pod_start(pod)
        except PodLaunchTimeoutException as error:
            reason, message = cluster.waiting(self.pod_manager.read_pod(pod))
            self.delete()
            if reason == _MISCONFIGURED:
                raise ConfigError(
                    f"pod {name} cannot start: {message}; make what it names, or correct `store_secret` and `store_config` of "
                    "the cluster settings"
                ) from error
            raise _NeverStarted(f"pod={name}: {error}") from error
        except PodLaunchFailedException as error:
            if self._never_ran(pod):
                return True
            words = " ".join(str(error).split())
            if any(reason in words for reason in _NEVER_PULLED):
                self.delete()
                raise ConfigError(
                    f"pod {name} cannot start: {words}; correct the cluster settings, or push the image"
                ) from error
            if time.monotonic() > deadline_s:
                self.delete()
                raise _NeverStarted(f"pod={name}: {words}") from error
            return False
        return True

    def delete(self) -> None:
        """Delete the pod, if it is there, which gives the stage its time to save.

        Raises:
            ClusterAway: the API stays away.
        """
        pod = self.pod or self.pod_request_obj
        if pod is None:
            return
        place = (pod.metadata.name, pod.metadata.namespace)
        try:
            cluster.outlast(lambda: self.client.delete_namespaced_pod(*place, _request_timeout=cluster.TIMEOUT_S))
        except ApiException as error:
            if error.status != cluster.NOT_THERE:
                raise

    def await_pod_completion(self, pod: Any) -> None:
        """Show its log until it ends. A pod that never ran has none, and one that cannot be read is taken up again later."""
        if self._never_ran(pod):
            return
        is_over = False
        while not self._has_shown_log(pod) and not is_over:
            is_over = self._has_ended(pod)  # then the next reading is the last
            time.sleep(_LOG_PAUSE_S)

    def _has_shown_log(self, pod: Any) -> bool:
        """Whether the log was followed to its end, as far as its kubelet has one."""
        try:
            super().await_pod_completion(pod)
        except _LogUnreadable as error:
            logger.warning("stage_log_unreadable pod=%s answer=%s", pod.metadata.name, error)
            return False
        return True

    def cleanup(self, pod: Any, remote_pod: Any, **_: Any) -> None:
        """Say how the pod ended, and leave the judgement to whoever reads the record."""
        if remote_pod is not None:
            status = remote_pod.status
            logger.info("stage_pod_ended pod=%s phase=%s reason=%s", remote_pod.metadata.name, status.phase, status.reason)

    def _has_ended(self, pod: Any) -> bool:
        return self.pod_manager.read_pod(pod).status.phase in PodPhase.terminal_states

    def _never_ran(self, pod: Any) -> bool:
        status = self.pod_manager.read_pod(pod).status
        return status.phase == "Failed" and not status.container_statuses
