"""A stage that spans nodes as a Kubeflow TrainJob: a pure function from a start to a manifest, as plain data.

One pod a node, on exactly the nodes of the request and off the excluded ones, all through `runtimePatches`: the runtime itself
is in `containers/kubernetes` and holds what a patch may not say, above all that nothing is restarted and that no token of the
API is mounted. Nothing here submits, and nothing here trains.
"""

from prunella.errors import ConfigError
from prunella.launch.kubernetes import pods
from prunella.launch.kubernetes.naming import LAUNCH_LABEL, ClusterLaunch
from prunella.launch.kubernetes.placement import node_affinity, one_a_node
from prunella.launch.kubernetes.pods import Manifest
from prunella.launch.kubernetes.settings import ClusterSettings
from prunella.records import Stage

SPANS_NODES = frozenset({Stage.GATE_FABRIC, Stage.TRAINING_SEGMENT})

#: Source: the models of kubeflow-trainer-api 2.3.0 (2026-11).
API_VERSION = "trainer.kubeflow.org/v1alpha1"
#: TrainJobs in the path of a request. Source: Kubeflow's SDK 0.5.0 (2026-11).
PLURAL = "trainjobs"
#: Name of the replicated job and of its container. Source: Kubeflow Trainer 2.3, whose runtimes call both so.
NODE_JOB = "node"
#: Whose patch this is, among those of other controllers such as Kueue.
_MANAGER = "prunella"


def train_job(launch: ClusterLaunch, settings: ClusterSettings) -> Manifest:
    """The TrainJob of a stage that spans nodes.

    Raises:
        ConfigError: there is no node, nodes differ in their devices, or the root cannot be reached from a pod.
    """
    devices = _devices_a_node(launch)
    trainer = {
        "image": settings.image(launch.request.stage),
        "command": launch.command,
        "env": pods.environment(launch, settings),
        "numNodes": len(launch.request.nodes),
        "numProcPerNode": devices,
        "resourcesPerNode": pods.resources(launch, settings, devices=devices),
    }
    spec = {
        "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": settings.runtime},
        "trainer": trainer,
        "runtimePatches": [{"manager": _MANAGER, "trainingRuntimeSpec": _for_each_pod(_patch(launch, settings))}],
        **pods.deadline(launch, settings),
    }
    return {"apiVersion": API_VERSION, "kind": "TrainJob", "metadata": pods.metadata(launch, settings), "spec": spec}


def _devices_a_node(launch: ClusterLaunch) -> int:
    """A TrainJob knows one number for all its nodes."""
    counts = sorted({node.devices for node in launch.request.nodes})
    if not counts:
        raise ConfigError(f"{launch.request_key}: the request names no node, so there is nothing to run it on")
    if len(counts) > 1:
        raise ConfigError(
            f"{launch.request_key}: nodes with {counts[0]} and with {counts[-1]} devices; a TrainJob needs the same number on "
            "each: correct `devices` in the fleet file, or leave the odd ones out"
        )
    return counts[0]


def _patch(launch: ClusterLaunch, settings: ClusterSettings) -> Manifest:
    """What is different from start to start in the pods of the runtime."""
    names = [node.name for node in launch.request.nodes]
    container = {
        "name": NODE_JOB,
        "securityContext": pods.container_security(),
        "volumeMounts": pods.mounts(launch, settings),
    }
    spec = {
        "serviceAccountName": settings.service_account,
        "terminationGracePeriodSeconds": settings.grace_s,
        "securityContext": pods.pod_security(settings),
        "affinity": {
            "nodeAffinity": node_affinity(only=names, excluded=launch.excluded),
            "podAntiAffinity": one_a_node({LAUNCH_LABEL: launch.name}),
        },
        **pods.tolerations(launch, settings, devices=_devices_a_node(launch)),
        "containers": [container],
        "volumes": pods.volumes(launch, settings),
    }
    return {"metadata": {"labels": launch.labels}, "spec": spec}


def _for_each_pod(template: Manifest) -> Manifest:
    """A pod template at its place inside the runtime: JobSet, replicated job, job."""
    job = {"name": NODE_JOB, "template": {"spec": {"template": template}}}
    return {"template": {"spec": {"replicatedJobs": [job]}}}
