"""Stages that run in one pod: what the pod runs, where it goes, and how little it may do."""

from typing import Any

import pytest

from prunella.errors import ConfigError
from prunella.launch.kubernetes.placement import CORDON_TAINT, HOST_LABEL
from prunella.launch.kubernetes.pods import Manifest, environment, mounts, pod, volumes
from prunella.launch.kubernetes.settings import STORE_FOLDER, STORE_SETTINGS, ClusterSettings, Resources
from prunella.launch.kubernetes.trainjobs import SPANS_NODES
from prunella.records import Stage
from unit.launch.kubernetes.examples import FOLDER, FOLDER_SETTINGS, SETTINGS, examples, launch

_PODS = {name: found for name, found in examples().items() if found["kind"] == "Pod"}


def container(manifest: Manifest) -> dict[str, Any]:
    (only,) = manifest["spec"]["containers"]
    return only


def host_rules(manifest: Manifest) -> list[tuple[str, list[str]]]:
    """What the pod says of hosts: (operator, names)."""
    affinity = manifest["spec"].get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    rules = [rule for term in terms for rule in term["matchExpressions"]]
    assert {rule["key"] for rule in rules} <= {HOST_LABEL}
    return [(rule["operator"], rule["values"]) for rule in rules]


def test_a_pod_runs_the_stage_with_one_request_key() -> None:
    asked = launch(Stage.EVALUATION)

    found = container(pod(asked, SETTINGS))

    assert found["command"] == [
        *("python", "-m", "prunella", "stage", "evaluation"),
        *("--root", "s3://campaigns/prunella", "--request", asked.request_key),
    ]
    assert "args" not in found


@pytest.mark.parametrize("manifest", _PODS.values(), ids=list(_PODS))
def test_a_pod_may_do_as_little_as_a_pod_can(manifest: Manifest) -> None:
    spec, only = manifest["spec"], container(manifest)

    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("manifest", _PODS.values(), ids=list(_PODS))
def test_a_pod_is_never_restarted_by_the_cluster(manifest: Manifest) -> None:
    assert manifest["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("manifest", _PODS.values(), ids=list(_PODS))
def test_whatever_a_stage_writes_to_is_a_volume(manifest: Manifest) -> None:
    mounted = {mount["mountPath"] for mount in container(manifest)["volumeMounts"]}
    told = {entry["name"]: entry.get("value") for entry in container(manifest)["env"]}

    assert {told["PRUNELLA_SCRATCH"], told["TMPDIR"], told["HOME"]} <= mounted


@pytest.mark.parametrize("manifest", _PODS.values(), ids=list(_PODS))
def test_requests_equal_limits_so_that_a_stage_is_evicted_last(manifest: Manifest) -> None:
    found = container(manifest)["resources"]

    assert found["requests"] == found["limits"]
    assert {"cpu", "memory", "ephemeral-storage"} <= found["limits"].keys()


def test_credentials_are_references_and_never_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame-of-the-renderer")

    manifest = pod(launch(Stage.EVALUATION), SETTINGS)

    secrets = [entry for entry in container(manifest)["env"] if entry["name"].startswith("AWS_")]
    assert len(secrets) == 6
    assert all("value" not in entry for entry in secrets)
    assert "sesame" not in str(manifest)


def test_how_the_store_is_reached_comes_from_the_config_map_each_word_of_which_may_be_absent() -> None:
    manifest = pod(launch(Stage.EVALUATION), SETTINGS)

    references = [entry.get("valueFrom", {}).get("configMapKeyRef") for entry in container(manifest)["env"]]
    found = {reference["key"]: reference["optional"] for reference in references if reference}
    assert found == dict.fromkeys(STORE_SETTINGS, True)


@pytest.mark.parametrize("stage", [Stage.EVALUATION, Stage.TRAINING_SEGMENT], ids=["Pod", "TrainJob"])
def test_the_config_map_is_a_folder_too_so_that_it_can_hold_the_certificates_of_an_authority(stage: Stage) -> None:
    asked = launch(stage)

    volume = next(volume for volume in volumes(asked, SETTINGS) if volume["name"] == "store")
    mount = next(mount for mount in mounts(asked, SETTINGS) if mount["name"] == "store")
    assert volume["configMap"] == {"name": SETTINGS.store_config, "optional": True}
    assert (mount["mountPath"], mount["readOnly"]) == (STORE_FOLDER, True)


def test_a_folder_is_reached_without_the_config_map_of_a_bucket() -> None:
    manifest = pod(launch(Stage.EVALUATION, root=FOLDER), FOLDER_SETTINGS)

    assert "configMap" not in str(manifest)


@pytest.mark.parametrize(("size", "found"), [("8Gi", ["8Gi"]), ("", [])])
def test_shared_memory_is_as_large_as_the_settings_say(size: str, found: list[str]) -> None:
    resources = Resources(cpu="1", memory="16Gi", scratch="1Gi", shared_memory=size)
    asked, settings = launch(Stage.EVALUATION), ClusterSettings(resources={"evaluation": resources})

    in_memory = [volume["emptyDir"]["sizeLimit"] for volume in volumes(asked, settings) if volume["name"] == "shared-memory"]
    seen = [mount["mountPath"] for mount in mounts(asked, settings) if mount["name"] == "shared-memory"]
    assert in_memory == found
    assert seen == ["/dev/shm"] * len(found)


@pytest.mark.parametrize("stage", Stage)
def test_stages_that_span_nodes_have_more_shared_memory_than_engines_give(stage: Stage) -> None:
    media = [volume.get("emptyDir", {}).get("medium") for volume in volumes(launch(stage), SETTINGS)]

    assert ("Memory" in media) == (stage in SPANS_NODES)


@pytest.mark.parametrize("stage", [Stage.EVALUATION, Stage.TRAINING_SEGMENT], ids=["Pod", "TrainJob"])
def test_keys_come_from_the_secret_which_must_have_them_but_for_the_token_of_temporary_ones(stage: Stage) -> None:
    references = [entry.get("valueFrom", {}).get("secretKeyRef") for entry in environment(launch(stage), SETTINGS)]

    found = {reference["key"]: reference.get("optional", False) for reference in references if reference}
    assert found == {"AWS_ACCESS_KEY_ID": False, "AWS_SECRET_ACCESS_KEY": False, "AWS_SESSION_TOKEN": True}


def test_without_a_secret_the_nodes_themselves_may_reach_the_bucket() -> None:
    manifest = pod(launch(Stage.EVALUATION), ClusterSettings(store_secret=""))

    assert "secretKeyRef" not in str(manifest)


def tolerated(manifest: Manifest) -> set[str]:
    return {toleration["key"] for toleration in manifest["spec"].get("tolerations", ())}


def test_the_gate_of_a_sweep_is_pinned_to_its_own_node_also_when_that_is_cordoned() -> None:
    manifest = pod(launch(Stage.GATE_NODE, experiment=""), SETTINGS)

    assert host_rules(manifest) == [("In", ["node-1"])]
    assert tolerated(manifest) >= {"node.kubernetes.io/unschedulable", CORDON_TAINT}


def test_the_gate_of_an_attempt_goes_where_training_may_go() -> None:
    """A node that somebody cordoned by hand must not pass a gate whose TrainJob it then holds up."""
    manifest = pod(launch(Stage.GATE_NODE), SETTINGS)

    assert host_rules(manifest) == [("In", ["node-1"])]
    assert tolerated(manifest) == {"nvidia.com/gpu"}


@pytest.mark.parametrize(("stage", "takes_devices"), [(Stage.GATE_NODE, True), (Stage.EVALUATION, False)])
def test_who_uses_accelerators_goes_onto_nodes_that_are_tainted_by_their_name(stage: Stage, takes_devices: bool) -> None:
    assert ("nvidia.com/gpu" in tolerated(pod(launch(stage), SETTINGS))) == takes_devices
    assert tolerated(pod(launch(stage), ClusterSettings())) == set()


def test_a_gate_learns_from_the_kubelet_on_which_node_it_is() -> None:
    told = {entry["name"]: entry for entry in container(pod(launch(Stage.GATE_NODE), SETTINGS))["env"]}

    assert told["PRUNELLA_NODE"]["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"


def test_a_gate_asks_for_every_device_of_its_node() -> None:
    found = container(pod(launch(Stage.GATE_NODE), SETTINGS))["resources"]

    assert found["limits"]["nvidia.com/gpu"] == "8"


def test_a_hung_gate_is_ended_by_the_cluster_when_nobody_else_is_left() -> None:
    manifest = pod(launch(Stage.GATE_NODE), ClusterSettings(startup_s=600))

    assert manifest["spec"]["activeDeadlineSeconds"] == 600 + 120


@pytest.mark.parametrize("stage", [Stage.DATA_PREP, Stage.CHECKPOINT_VALIDATION, Stage.EVALUATION])
def test_excluded_nodes_are_kept_free_of_every_other_stage(stage: Stage) -> None:
    manifest = pod(launch(stage, excluded=("node-2", "node-1")), SETTINGS)

    assert host_rules(manifest) == [("NotIn", ["node-1", "node-2"])]
    assert "tolerations" not in manifest["spec"]


def test_a_node_cannot_be_asked_for_and_excluded_at_once() -> None:
    with pytest.raises(ConfigError, match="'node-1' is asked for and excluded"):
        pod(launch(Stage.GATE_NODE, excluded=("node-1",)), SETTINGS)


def test_a_root_that_is_a_folder_is_reached_through_a_claim() -> None:
    manifest = pod(launch(Stage.DATA_PREP, root=FOLDER), FOLDER_SETTINGS)

    claims = {volume["name"]: volume.get("persistentVolumeClaim") for volume in manifest["spec"]["volumes"]}
    assert claims["root"] == {"claimName": "prunella-root"}
    assert {"name": "root", "mountPath": "/prunella"} in container(manifest)["volumeMounts"]
    assert "AWS_" not in str(manifest)


@pytest.mark.parametrize("settings", [ClusterSettings(), ClusterSettings(claim="prunella-root", claim_path="/elsewhere")])
def test_a_folder_that_lies_in_no_volume_is_refused(settings: ClusterSettings) -> None:
    with pytest.raises(ConfigError, match="pods reach a folder through a volume claim only"):
        pod(launch(Stage.DATA_PREP, root=FOLDER), settings)


def test_resources_of_a_stage_are_a_setting() -> None:
    settings = ClusterSettings(resources={"evaluation": Resources(cpu="64", memory="1Ti", scratch="2Ti")})

    found = container(pod(launch(Stage.EVALUATION), settings))["resources"]

    assert found["limits"] == {"cpu": "64", "memory": "1Ti", "ephemeral-storage": "2Ti"}
