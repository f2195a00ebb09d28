"""Stages that span nodes: one pod a node, on the nodes of the request and no other, all through runtime patches."""

from typing import Any

import pytest

from prunella.errors import ConfigError
from prunella.launch.kubernetes.naming import LAUNCH_LABEL
from prunella.launch.kubernetes.pods import Manifest
from prunella.launch.kubernetes.trainjobs import SPANS_NODES, train_job
from prunella.records import NodeRef, Stage
from unit.launch.kubernetes.examples import SETTINGS, launch


def patched_pod(manifest: Manifest) -> dict[str, Any]:
    """The pod template inside the one runtime patch."""
    (patch,) = manifest["spec"]["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]


def host_rules(manifest: Manifest) -> list[tuple[str, list[str]]]:
    affinity = patched_pod(manifest)["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return [(rule["operator"], rule["values"]) for rule in term["matchExpressions"]]


@pytest.mark.parametrize("stage", sorted(SPANS_NODES))
def test_a_train_job_runs_the_stage_with_one_request_key_on_every_node(stage: Stage) -> None:
    asked = launch(stage)

    trainer = train_job(asked, SETTINGS)["spec"]["trainer"]

    assert trainer["command"] == asked.command
    assert trainer["numNodes"] == 2
    assert trainer["numProcPerNode"] == 8
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "8"


def test_a_train_job_goes_onto_nodes_that_are_tainted_by_the_name_of_their_accelerators_and_onto_no_cordoned_one() -> None:
    manifest = train_job(launch(Stage.TRAINING_SEGMENT), SETTINGS)

    (found,) = patched_pod(manifest)["spec"]["tolerations"]
    assert found == {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def test_excluded_nodes_are_kept_out_by_a_runtime_patch() -> None:
    manifest = train_job(launch(Stage.TRAINING_SEGMENT, excluded=("node-1",)), SETTINGS)

    assert host_rules(manifest) == [("In", ["node-0", "node-2"]), ("NotIn", ["node-1"])]


def test_no_two_pods_of_a_train_job_share_a_host() -> None:
    asked = launch(Stage.TRAINING_SEGMENT)

    pod = patched_pod(train_job(asked, SETTINGS))

    (term,) = pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term == {"labelSelector": {"matchLabels": {LAUNCH_LABEL: asked.name}}, "topologyKey": "kubernetes.io/hostname"}
    assert pod["metadata"]["labels"][LAUNCH_LABEL] == asked.name


def test_nodes_with_different_numbers_of_devices_are_refused() -> None:
    nodes = (NodeRef(name="node-0", devices=8), NodeRef(name="node-1", devices=4))

    with pytest.raises(ConfigError, match="nodes with 4 and with 8 devices"):
        train_job(launch(Stage.TRAINING_SEGMENT, nodes=nodes), SETTINGS)


def test_a_request_without_nodes_is_refused() -> None:
    with pytest.raises(ConfigError, match="names no node"):
        train_job(launch(Stage.GATE_FABRIC, nodes=()), SETTINGS)


def test_an_admitted_node_cannot_be_excluded() -> None:
    with pytest.raises(ConfigError, match="'node-2' is asked for and excluded"):
        train_job(launch(Stage.TRAINING_SEGMENT, excluded=("node-2",)), SETTINGS)
