"""One stage as one pod: a pure function from a start to a manifest, as plain data.

Decides nothing that the request does not say. The pod may do as little as a pod can: no root, no capabilities, no token of the
API, a root file system that nobody writes to; it fits the profile `restricted` of Kubernetes' pod security standards. It
carries names of secrets and never a value. It is never restarted: whether a stage starts again is decided elsewhere.
"""

import math
from pathlib import PurePosixPath
from typing import Any

from prunella.errors import ConfigError
from prunella.launch.kubernetes.naming import IDENTITY, ClusterLaunch
from prunella.launch.kubernetes.placement import cordon_tolerations, node_affinity, tolerated
from prunella.launch.kubernetes.settings import OPTIONAL_KEYS, STORE_FOLDER, STORE_KEYS, STORE_SETTINGS, ClusterSettings
from prunella.records import GateNodeRequest

Manifest = dict[str, Any]

CONTAINER = "stage"
_SCRATCH = "/scratch"


def pod(launch: ClusterLaunch, settings: ClusterSettings) -> Manifest:
    """The pod of a stage that runs in one. Raises ConfigError where the root cannot be reached from a pod."""
    devices = _devices(launch, settings)
    container = {
        "name": CONTAINER,
        "image": settings.image(launch.request.stage),
        "imagePullPolicy": "IfNotPresent",
        "command": launch.command,
        "env": environment(launch, settings),
        "resources": resources(launch, settings, devices=devices),
        "securityContext": container_security(),
        "volumeMounts": mounts(launch, settings),
    }
    spec = {
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": settings.grace_s,
        **deadline(launch, settings),
        "securityContext": pod_security(settings),
        **_placement(launch),
        **tolerations(launch, settings, devices=devices),
        "containers": [container],
        "volumes": volumes(launch, settings),
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata(launch, settings), "spec": spec}


def metadata(launch: ClusterLaunch, settings: ClusterSettings) -> Manifest:
    """Name, labels, and which request this answers, in full."""
    annotations = dict(zip(IDENTITY, (launch.request.root, launch.request_key), strict=True))
    return {"name": launch.name, "namespace": settings.namespace, "labels": launch.labels, "annotations": annotations}


def environment(launch: ClusterLaunch, settings: ClusterSettings) -> list[Manifest]:
    """Where scratch is, which node this is, and how the store is reached. The node's name comes from the kubelet."""
    folders = ("PRUNELLA_SCRATCH", "TMPDIR", "HOME")
    plain: list[Manifest] = [{"name": name, "value": _SCRATCH} for name in folders]
    node = {"name": "PRUNELLA_NODE", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "spec.nodeName"}}}
    return [*plain, node, *_store(launch, settings)]


def _store(launch: ClusterLaunch, settings: ClusterSettings) -> list[Manifest]:
    if not _is_bucket(launch):
        return []
    secret = {"name": settings.store_secret}
    config = {"name": settings.store_config, "optional": True}
    keys = STORE_KEYS if settings.store_secret else ()
    absent = {key: {"optional": True} if key in OPTIONAL_KEYS else {} for key in keys}
    return [
        *({"name": key, "valueFrom": {"secretKeyRef": {**secret, "key": key, **absent[key]}}} for key in keys),
        *({"name": key, "valueFrom": {"configMapKeyRef": {**config, "key": key}}} for key in STORE_SETTINGS),
    ]


def resources(launch: ClusterLaunch, settings: ClusterSettings, *, devices: int) -> Manifest:
    """Requests that equal the limits, so that the node evicts such a pod last. Source: Kubernetes' class Guaranteed."""
    asked = settings.of(launch.request.stage)
    amounts = {"cpu": asked.cpu, "memory": asked.memory, "ephemeral-storage": asked.scratch}
    if devices and settings.device_resource:
        amounts[settings.device_resource] = str(devices)
    return {"requests": amounts, "limits": dict(amounts)}


def tolerations(launch: ClusterLaunch, settings: ClusterSettings, *, devices: int) -> Manifest:
    """Onto nodes tainted by the name of their accelerators, for what uses them; onto cordoned ones, for the gates of sweeps.

    The gate of an attempt goes where training may go: a node that somebody cordoned by hand would pass it, and then hold up the
    whole TrainJob, whose pod cannot go there.

    Source: Kubernetes' admission plug-in ExtendedResourceToleration, which adds the first where it is on, 2026-11.
    """
    found = [tolerated(settings.device_resource)] if devices and settings.device_resource else []
    if isinstance(launch.request, GateNodeRequest) and not launch.request.experiment:
        found += cordon_tolerations()
    return {"tolerations": found} if found else {}


def pod_security(settings: ClusterSettings) -> Manifest:
    """Not root, files of volumes ours, system calls filtered."""
    return {
        "runAsNonRoot": True,
        "runAsUser": settings.user,
        "runAsGroup": settings.user,
        "fsGroup": settings.user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Manifest:
    """Nothing to write to but volumes, nothing to gain."""
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def deadline(launch: ClusterLaunch, settings: ClusterSettings) -> Manifest:
    """The cluster ends what nobody is left to end; the stage's own limit comes first."""
    if launch.timeout_s is None:
        return {}
    return {"activeDeadlineSeconds": settings.startup_s + math.ceil(launch.timeout_s)}


def volumes(launch: ClusterLaunch, settings: ClusterSettings) -> list[Manifest]:
    """Scratch, shared memory, and what reaches the root: the files of the store's config map, or the claim of a folder. Raises
    ConfigError where the root is a folder that lies in no volume."""
    return [volume for volume, _ in _places(launch, settings)]


def mounts(launch: ClusterLaunch, settings: ClusterSettings) -> list[Manifest]:
    """Where the volumes are seen. Raises as `volumes`."""
    return [{"name": volume["name"], **seen} for volume, seen in _places(launch, settings)]


def _places(launch: ClusterLaunch, settings: ClusterSettings) -> list[tuple[Manifest, Manifest]]:
    """Every volume, with where and how it is seen."""
    asked, root = settings.of(launch.request.stage), launch.request.root
    found: list[tuple[Manifest, Manifest]] = [
        ({"name": "scratch", "emptyDir": {"sizeLimit": asked.scratch}}, {"mountPath": _SCRATCH})
    ]
    if asked.shared_memory:
        memory = {"medium": "Memory", "sizeLimit": asked.shared_memory}
        found.append(({"name": "shared-memory", "emptyDir": memory}, {"mountPath": "/dev/shm"}))  # noqa: S108 - the pod's own
    if _is_bucket(launch):
        config = {"name": settings.store_config, "optional": True}
        return [*found, ({"name": "store", "configMap": config}, {"mountPath": STORE_FOLDER, "readOnly": True})]
    if not settings.claim or not PurePosixPath(root).is_relative_to(settings.claim_path):
        claim = f"the claim {settings.claim!r} at {settings.claim_path}" if settings.claim else "no claim"
        raise ConfigError(
            f"root {root}: pods reach a folder through a volume claim only, and the cluster settings name {claim}; "
            "use s3://BUCKET/PREFIX, or set `claim` and a root under `claim_path`"
        )
    claimed = {"name": "root", "persistentVolumeClaim": {"claimName": settings.claim}}
    return [*found, (claimed, {"mountPath": settings.claim_path})]


def _is_bucket(launch: ClusterLaunch) -> bool:
    return "://" in launch.request.root


def _devices(launch: ClusterLaunch, settings: ClusterSettings) -> int:
    request = launch.request
    if isinstance(request, GateNodeRequest):
        return next((node.devices for node in request.nodes if node.name == request.node), 1)
    return settings.of(request.stage).devices


def _placement(launch: ClusterLaunch) -> Manifest:
    """A gate goes onto its own node; everything else anywhere but the excluded ones."""
    if isinstance(launch.request, GateNodeRequest):
        return {"affinity": {"nodeAffinity": node_affinity(only=[launch.request.node], excluded=launch.excluded)}}
    kept_off = node_affinity(excluded=launch.excluded)
    return {"affinity": {"nodeAffinity": kept_off}} if kept_off else {}
