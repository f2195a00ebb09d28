"""What `containers/kubernetes` installs grants what is needed and no more, holds no secret, and fits what we render."""

import itertools
from typing import Any

import pytest
import yaml

from prunella import __version__
from prunella.launch.kubernetes.pods import Manifest
from prunella.launch.kubernetes.settings import ClusterSettings, load_settings
from prunella.launch.kubernetes.trainjobs import API_VERSION, SPANS_NODES
from prunella.records import Stage
from unit.launch.kubernetes.examples import examples
from unit.launch.kubernetes.installed import FOLDER, OVERLAYS, installed, offered, one, pod_of

_DEFAULTS = ClusterSettings()


@pytest.fixture(params=OVERLAYS)
def documents(request: pytest.FixtureRequest) -> list[Manifest]:
    return installed(request.param)


def pods_on_the_cluster() -> dict[str, Manifest]:
    """The pod of every stage, those of TrainJobs as their runtime makes them."""
    runtime = one(installed("s3"), "TrainingRuntime", _DEFAULTS.runtime)
    return {name: pod_of(found, runtime) if found["kind"] == "TrainJob" else found for name, found in examples().items()}


# ------------------------------------------------------------------------------------------------ what is granted


def granted(documents: list[Manifest]) -> dict[tuple[str, str], set[str]]:
    """(role, resource) to verbs."""
    roles = [document for document in documents if document["kind"] in ("Role", "ClusterRole")]
    rules = [(role["metadata"]["name"], rule) for role in roles for rule in role["rules"]]
    return {
        (role, "/".join(filter(None, pair))): set(rule["verbs"])
        for role, rule in rules
        for pair in itertools.product(rule["apiGroups"], rule["resources"])
    }


def test_roles_grant_exactly_what_starting_watching_and_ending_stages_takes(documents: list[Manifest]) -> None:
    assert granted(documents) == {
        ("prunella-orchestrator", "pods"): {"create", "delete", "get", "list"},
        ("prunella-orchestrator", "pods/log"): {"get"},
        ("prunella-orchestrator", "trainer.kubeflow.org/trainjobs"): {"create", "delete", "get"},
        ("prunella-node-keeper", "nodes"): {"get", "patch"},
    }


def test_no_role_has_a_wildcard(documents: list[Manifest]) -> None:
    roles = [document for document in documents if document["kind"] in ("Role", "ClusterRole")]

    words = [word for role in roles for rule in role["rules"] for words in rule.values() for word in words]

    assert len(roles) == 2
    assert [word for word in words if "*" in word] == []


def test_whom_stages_run_as_may_do_nothing(documents: list[Manifest]) -> None:
    bindings = [document for document in documents if document["kind"].endswith("Binding")]

    bound = {subject["name"] for binding in bindings for subject in binding["subjects"]}

    assert bound == {"prunella-orchestrator"}


def test_no_service_account_has_its_token_mounted_unasked(documents: list[Manifest]) -> None:
    accounts = [document for document in documents if document["kind"] == "ServiceAccount"]

    assert [account["automountServiceAccountToken"] for account in accounts] == [False, False]


# ------------------------------------------------------------------------------------------------ what is not there


def test_the_repository_holds_no_secret_and_no_value_of_one() -> None:
    for path in FOLDER.rglob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            assert document["kind"] != "Secret", path
            assert not {"secretGenerator", "stringData"} & document.keys(), path
            assert "SECRET" not in str(document.get("data", {})), path
            assert "ACCESS_KEY" not in str(document.get("data", {})), path


def test_every_file_of_the_folder_is_installed_by_an_overlay() -> None:
    written = [
        d for path in FOLDER.rglob("*.yaml") for d in yaml.safe_load_all(path.read_text()) if d["kind"] != "Kustomization"
    ]

    gathered = [document for overlay in OVERLAYS for document in installed(overlay)]

    assert [document["metadata"]["name"] for document in written if document not in gathered] == []


# ------------------------------------------------------------------------------------------------ what is named exists


def names(documents: list[Manifest], kind: str) -> set[str]:
    return {document["metadata"]["name"] for document in documents if document["kind"] == kind}


def test_every_binding_names_a_role_and_an_account_that_exist(documents: list[Manifest]) -> None:
    for binding in (document for document in documents if document["kind"].endswith("Binding")):
        assert binding["roleRef"]["name"] in names(documents, binding["roleRef"]["kind"])
        assert {subject["name"] for subject in binding["subjects"]} <= names(documents, "ServiceAccount")


def test_everything_lies_in_the_namespace_that_is_made(documents: list[Manifest]) -> None:
    without = ("Namespace", "ClusterRole", "ClusterRoleBinding")

    namespaces = {document["metadata"]["namespace"] for document in documents if document["kind"] not in without}

    assert namespaces == names(documents, "Namespace") == {_DEFAULTS.namespace}


def test_the_defaults_name_what_is_installed() -> None:
    documents = installed("s3")

    assert _DEFAULTS.service_account in names(documents, "ServiceAccount")
    assert _DEFAULTS.runtime in names(documents, "TrainingRuntime")
    assert _DEFAULTS.store_config in names(documents, "ConfigMap")


def test_the_settings_of_the_volume_overlay_name_its_claim() -> None:
    settings = load_settings(str(FOLDER / "overlays" / "pvc" / "cluster.toml"))

    assert settings.claim in names(installed("pvc"), "PersistentVolumeClaim")


def test_the_secret_that_pods_name_is_the_one_that_the_readme_has_you_make() -> None:
    readme = (FOLDER / "README.md").read_text()

    named = {
        (entry["valueFrom"]["secretKeyRef"]["name"], entry["valueFrom"]["secretKeyRef"]["key"])
        for pod in pods_on_the_cluster().values()
        for entry in pod["spec"]["containers"][0]["env"]
        if "secretKeyRef" in entry.get("valueFrom", {})
    }
    assert named == {("prunella-store", f"AWS_{key}") for key in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")}
    assert "create secret generic prunella-store" in readme
    assert all(f"`{key}=...`" in readme for _, key in named)


def test_the_runtime_is_of_the_version_and_image_that_train_jobs_use(documents: list[Manifest]) -> None:
    runtime = one(documents, "TrainingRuntime", _DEFAULTS.runtime)

    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    assert runtime["apiVersion"] == API_VERSION
    assert container["image"] == _DEFAULTS.image(Stage.TRAINING_SEGMENT)
    assert container["image"].endswith(f":{__version__}")


def test_the_cluster_restarts_nothing_of_a_train_job(documents: list[Manifest]) -> None:
    template = one(documents, "TrainingRuntime", _DEFAULTS.runtime)["spec"]["template"]["spec"]

    (job,) = template["replicatedJobs"]
    assert template["failurePolicy"]["maxRestarts"] == 0
    assert job["template"]["spec"]["backoffLimit"] == 0
    assert job["template"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"


# ------------------------------------------------------------------------------------------------ pods as they will be


#: Kinds of volumes of the profile `restricted`. Source: Kubernetes' pod security standards, 2026-11.
_RESTRICTED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def beyond_restricted(spec: dict[str, Any]) -> list[str]:
    """What in a pod the profile `restricted` would refuse. Source: Kubernetes' pod security standards, 2026-11."""
    pod = spec.get("securityContext", {})
    found = [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    if pod.get("runAsNonRoot") is not True or pod.get("runAsUser") == 0:
        found.append("may run as root")
    if pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        found.append("system calls are not filtered")
    found += [kind for volume in spec.get("volumes", []) for kind in volume.keys() - {"name"} - _RESTRICTED_VOLUMES]
    for container in spec["containers"]:
        own = container.get("securityContext", {})
        if own.get("privileged") or own.get("allowPrivilegeEscalation") is not False:
            found.append("may gain privileges")
        if own.get("capabilities") != {"drop": ["ALL"]}:
            found.append("has capabilities")
        found += ["host port" for port in container.get("ports", []) if port.get("hostPort")]
    return found


@pytest.mark.parametrize("name", examples())
def test_the_pod_of_a_stage_passes_the_profile_that_the_namespace_enforces(name: str) -> None:
    spec = pods_on_the_cluster()[name]["spec"]

    level = one(installed("s3"), "Namespace", _DEFAULTS.namespace)["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert level == "restricted"
    assert beyond_restricted(spec) == []
    assert spec["automountServiceAccountToken"] is False
    assert all(container["securityContext"]["readOnlyRootFilesystem"] for container in spec["containers"])


def test_a_pod_that_could_do_more_would_be_refused() -> None:
    spec = {"hostNetwork": True, "volumes": [{"name": "all", "hostPath": {"path": "/"}}], "containers": [{"name": "stage"}]}

    assert len(beyond_restricted(spec)) == 6


# ------------------------------------------------------------------------------------------------ who may talk to whom


def selected(policy: Manifest, labels: dict[str, str]) -> bool:
    return _matches(policy["spec"]["podSelector"], labels)


def _matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    same = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    expressions = selector.get("matchExpressions", [])
    assert {expression["operator"] for expression in expressions} <= {"In"}
    return same and all(labels.get(rule["key"]) in rule["values"] for rule in expressions)


def policies(documents: list[Manifest], labels: dict[str, str]) -> list[Manifest]:
    """The policies that hold for a pod with these labels."""
    return [document for document in documents if document["kind"] == "NetworkPolicy" and selected(document, labels)]


@pytest.mark.parametrize("name", examples())
def test_a_stage_is_called_by_nobody_but_its_own_kind(documents: list[Manifest], name: str) -> None:
    labels = pods_on_the_cluster()[name]["metadata"]["labels"]

    held = policies(documents, labels)

    callers = [peer for policy in held for rule in policy["spec"].get("ingress", []) for peer in rule["from"]]
    assert any("Ingress" in policy["spec"]["policyTypes"] for policy in held)
    assert len(callers) == (1 if Stage(name) in SPANS_NODES else 0)
    for peer in callers:
        assert peer.keys() == {"podSelector"}
        assert _matches(peer["podSelector"], labels)
        assert not _matches(peer["podSelector"], {"app.kubernetes.io/name": "other"})
        assert not _matches(peer["podSelector"], {**labels, "app.kubernetes.io/component": "evaluation"})


@pytest.mark.parametrize(("overlay", "blocks"), [("s3", ["192.0.2.0/24"]), ("pvc", [])])
@pytest.mark.parametrize("name", examples())
def test_a_stage_calls_dns_the_store_and_its_own_kind_only_and_training_kubeflow(
    name: str, overlay: str, blocks: list[str]
) -> None:
    labels = pods_on_the_cluster()[name]["metadata"]["labels"]

    held = policies(installed(overlay), labels)

    peers = [peer for policy in held for rule in policy["spec"].get("egress", []) for peer in rule["to"]]
    outside = [peer["ipBlock"]["cidr"] for peer in peers if "ipBlock" in peer]
    dns = [peer for peer in peers if namespace_of(peer) == "kube-system" and "podSelector" in peer]
    kubeflow = [peer for peer in peers if namespace_of(peer) == "kubeflow-system"]
    own = [peer for peer in peers if peer.keys() == {"podSelector"}]
    assert any("Egress" in policy["spec"]["policyTypes"] for policy in held)
    assert outside == blocks
    assert len(dns) == 1
    assert len(own) == (1 if Stage(name) in SPANS_NODES else 0)
    assert len(kubeflow) == (1 if Stage(name) is Stage.TRAINING_SEGMENT else 0)
    assert len(peers) == len(outside) + len(dns) + len(own) + len(kubeflow)


@pytest.mark.parametrize(
    ("file", "blocks", "ports"),
    [
        ("base/network-policies.yaml", ["169.254.20.10/32"], [("UDP", 53), ("TCP", 53)]),
        ("overlays/s3/store.yaml", ["169.254.169.254/32", "169.254.170.23/32"], [("TCP", 80)]),
    ],
    ids=["node-local DNS", "identity"],
)
def test_a_way_that_only_some_clusters_have_is_there_to_be_uncommented_and_holds_for_every_stage(
    file: str, blocks: list[str], ports: list[tuple[str, int]]
) -> None:
    (policy,) = offered(file)

    (rule,) = policy["spec"]["egress"]
    assert (policy["kind"], policy["metadata"]["namespace"]) == ("NetworkPolicy", _DEFAULTS.namespace)
    assert all(selected(policy, pod["metadata"]["labels"]) for pod in pods_on_the_cluster().values())
    assert [peer["ipBlock"]["cidr"] for peer in rule["to"]] == blocks
    assert [(port["protocol"], port["port"]) for port in rule["ports"]] == ports


def namespace_of(peer: dict[str, Any]) -> str | None:
    name: str | None = peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
    return name
