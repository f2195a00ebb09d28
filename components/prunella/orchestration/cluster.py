"""The door to a cluster's API: the official client, and what its errors mean.

The cluster is the one of the file that KUBECONFIG names; without it, the one that this process is a pod of; else that of the
client's usual file. Needs the `kubernetes` package, which comes with the extra `cluster`.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import yaml

from prunella.errors import ConfigError, PrunellaError

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

#: Credentials that are not, or no longer, good.
UNAUTHORIZED = 401
DENIED = (UNAUTHORIZED, 403)
NOT_THERE = 404
#: The name is taken, or the object is not the one any more that a change was made from.
CONFLICT = 409
#: Answers that another try may not get. Source: those that Airflow's Kubernetes provider 10.25 repeats, without the conflict.
PASSING = (429, 500, 502, 503, 504)
#: A server that does not answer within this long is away. Source: own choice 2026-11, half of what Airflow's provider waits.
TIMEOUT_S = 30.0
#: How often a request is made before the server counts as away, and the first pause between two. Source: own choice 2026-11:
#: 6 s in all; a kubelet writes its node every few seconds, so that losing five races with it in a row is not bad luck.
_TRIES = 5
_FIRST_PAUSE_S = 0.4
#: How long the API may be away before a task gives up waiting for it, in seconds. Source: own choice 2026-11: a control plane
#: is upgraded within that; Airflow's next try goes on waiting.
PATIENCE_S = 1800.0


class ClusterAway(PrunellaError):
    """The cluster's API does not answer. Transient: what was asked may be asked again."""


def kubeconfig() -> str | None:
    """The file that says where the cluster is, where one is named."""
    return os.environ.get("KUBECONFIG") or None


def api_client() -> Any:
    """A `kubernetes.client.ApiClient` of its own.

    Raises:
        ConfigError: there is no client library, or nothing says where the cluster is.
    """
    try:
        from kubernetes import client, config
    except ModuleNotFoundError as error:
        raise ConfigError("no Kubernetes client is installed here; install prunella[cluster] where this runs") from error
    settings = client.Configuration()
    try:
        _load(config, settings)
    except (config.ConfigException, yaml.YAMLError) as error:
        raise ConfigError(
            f"no cluster to talk to: {error}; run this in a pod that may use its account's token, or name a kubeconfig file "
            "with KUBECONFIG"
        ) from error
    return client.ApiClient(settings)


def _load(config: Any, settings: Any) -> None:
    if kubeconfig() is None:
        try:
            config.load_incluster_config(client_configuration=settings)
        except config.ConfigException:
            config.load_kube_config(client_configuration=settings)
    else:
        config.load_kube_config(config_file=kubeconfig(), client_configuration=settings)


def patiently(call: Callable[[], Answer], *, also: tuple[int, ...] = ()) -> Answer:
    """What `call` returns. It is made again while the server is away or busy, so it must be one that may be.

    Args:
        also: statuses besides that another call may not get.

    Raises:
        ApiException: another answer, or to the end one of `also`.
        ClusterAway: the server is away.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    for index in range(_TRIES):
        is_last = index == _TRIES - 1
        try:
            return call()
        except ApiException as error:
            if error.status not in (*also, *PASSING) or (is_last and error.status in also):
                raise
            if is_last:
                raise _away(words(error)) from error
            logger.info("cluster_asked_again answer=%s", words(error))
        except HTTPError as error:
            if is_last:
                raise _away(str(error)) from error
            logger.info("cluster_asked_again error=%s", error)
        time.sleep(_FIRST_PAUSE_S * 2**index)
    raise AssertionError("the last try returns or raises")


def outlast(call: Callable[[], Answer], *, also: tuple[int, ...] = ()) -> Answer:
    """As `patiently`, round after round of tries, for as long as a control plane may be away: PATIENCE_S.

    Raises:
        ApiException: another answer, or to the end of a round one of `also`.
        ClusterAway: the server stays away.
    """
    begun_s = time.monotonic()
    while True:
        try:
            return patiently(call, also=also)
        except ClusterAway as error:
            away_s = time.monotonic() - begun_s
            if away_s > PATIENCE_S:
                raise
            logger.warning("cluster_away for_s=%.0f limit_s=%.0f error=%s", away_s, PATIENCE_S, error)
        time.sleep(_FIRST_PAUSE_S * 2**_TRIES)


def _away(what: str) -> ClusterAway:
    return ClusterAway(f"the cluster's API does not answer ({what}); nothing is lost: do the same again when it is back")


def words(error: Any) -> str:
    """An ApiException on one line, with what the server says itself."""
    try:
        text = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        text = error.body or ""
    return " ".join(f"{error.status} {error.reason}: {text}".split())


def waiting(pod: Any) -> tuple[str, str]:
    """Reason and message of the first container of a `kubernetes.client.V1Pod` that waits; empty where none does."""
    states = [status.state.waiting for status in pod.status.container_statuses or ()]
    found = next((state for state in states if state is not None), None)
    return ("", "") if found is None else (found.reason or "", found.message or "")


def what_keeps(pod: Any) -> str:
    """Why a `kubernetes.client.V1Pod` does not run, as scheduler or kubelet word it; empty where neither says."""
    told = waiting(pod)
    if not any(told):
        kept_off = (one for one in pod.status.conditions or () if one.type == "PodScheduled" and one.status == "False")
        told = next(((one.reason or "", one.message or "") for one in kept_off), told)
    return " ".join(": ".join(word for word in told if word).split())
