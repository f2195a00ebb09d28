"""The stand-in for an API server refuses what a cluster would refuse: a request with one mistake, never the same without it."""

import copy
import json
from typing import Any

import pytest

from orchestrator.api_double import Cluster, Right
from unit.launch.kubernetes.examples import examples

POD = examples()["gate_node"]
JOB = examples()["training_segment"]
PODS = "/api/v1/namespaces/prunella/pods"
JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/prunella/trainjobs"
A_POD = f"{PODS}/{POD['metadata']['name']}"
A_JOB = f"{JOBS}/{JOB['metadata']['name']}"
BACKGROUND = {"propagationPolicy": "Background"}

Sent = tuple[str, str, Any]

#: What is wrong -> the request, the status of the refusal, and the request as it should be.
WRONG: dict[str, tuple[Sent, int, Sent]] = {
    "unknown option of a deletion": (
        ("DELETE", A_POD, {"gracePeriod": 5}),
        400,
        ("DELETE", A_POD, {"gracePeriodSeconds": 5}),
    ),
    "option of another type": (
        ("DELETE", A_POD, {"gracePeriodSeconds": "soon"}),
        400,
        ("DELETE", A_POD, {"gracePeriodSeconds": 5}),
    ),
    "options of another kind": (("DELETE", A_POD, {"kind": "Pod"}), 400, ("DELETE", A_POD, {"kind": "DeleteOptions"})),
    "unknown option of a TrainJob's deletion": (
        ("DELETE", A_JOB, {**BACKGROUND, "grace": 1}),
        400,
        ("DELETE", A_JOB, BACKGROUND),
    ),
    "parameter of another request": (("GET", f"{A_POD}?tailLines=5", None), 400, ("GET", f"{A_POD}?pretty=true", None)),
    "parameter of no request": (("GET", f"{A_POD}/log?tail=5", None), 400, ("GET", f"{A_POD}/log?tailLines=5", None)),
    "misspelt parameter": (
        ("DELETE", f"{A_JOB}?propagationpolicy=Background", BACKGROUND),
        400,
        ("DELETE", f"{A_JOB}?propagationPolicy=Background", None),
    ),
    "TrainJob deleted in the foreground": (
        ("DELETE", A_JOB, {"propagationPolicy": "Foreground"}),
        422,
        ("DELETE", A_JOB, BACKGROUND),
    ),
    "pods of everybody": (("GET", PODS, None), 400, ("GET", f"{PODS}?labelSelector=prunella.launch%3Dx", None)),
    "pod of another namespace": (("GET", A_POD.replace("prunella/", "default/", 1), None), 403, ("GET", A_POD, None)),
    "TrainJob of another namespace": (("GET", A_JOB.replace("prunella/", "default/", 1), None), 403, ("GET", A_JOB, None)),
    "pod of no namespace": (("GET", A_POD.replace("/namespaces/prunella", ""), None), 404, ("GET", A_POD, None)),
    "node in a namespace": (
        ("GET", "/api/v1/namespaces/prunella/nodes/node-1", None),
        404,
        ("GET", "/api/v1/nodes/node-1", None),
    ),
    "pod of Kubeflow's group": (("GET", A_JOB.replace("trainjobs", "pods"), None), 403, ("GET", A_JOB, None)),
    "TrainJob of the core group": (("GET", A_POD.replace("pods", "trainjobs"), None), 403, ("GET", A_POD, None)),
}


@pytest.fixture
def cluster() -> Cluster:
    """With a pod, a TrainJob and a node."""
    pod, job = copy.deepcopy(POD), copy.deepcopy(JOB)
    made = Cluster(pods={pod["metadata"]["name"]: pod}, jobs={job["metadata"]["name"]: job})
    made.node("node-1")
    return made


def answered(cluster: Cluster, method: str, path: str, body: Any) -> int:
    """The status that a request is answered with."""
    code, _ = cluster.answer(method, path, b"" if body is None else json.dumps(body).encode())
    return code


@pytest.mark.parametrize(("wrong", "code", "right"), WRONG.values(), ids=list(WRONG))
def test_a_request_with_one_mistake_is_refused_and_the_same_without_it_is_not(
    cluster: Cluster, wrong: Sent, code: int, right: Sent
) -> None:
    before = copy.deepcopy((cluster.pods, cluster.jobs))

    refused = answered(cluster, *wrong)
    is_unchanged = (cluster.pods, cluster.jobs) == before
    passed = answered(cluster, *right)

    assert (refused, is_unchanged, passed) == (code, True, 200)
    assert len(cluster.refused) == 1


@pytest.mark.parametrize(("document", "path"), [(POD, PODS), (JOB, JOBS)], ids=["Pod", "TrainJob"])
def test_an_object_that_names_another_namespace_than_its_request_is_refused(document: dict[str, Any], path: str) -> None:
    cluster = Cluster()
    elsewhere = {**document, "metadata": {**document["metadata"], "namespace": "default"}}

    assert answered(cluster, "POST", path, elsewhere) == 400
    assert answered(cluster, "POST", path, document) == 201


@pytest.mark.parametrize(
    ("change", "is_covered"),
    [
        ({}, True),
        ({"namespace": "default"}, False),
        ({"namespace": None}, False),
        ({"group": "trainer.kubeflow.org"}, False),
        ({"verb": "delete"}, False),
        ({"resource": "pods/log"}, False),
    ],
    ids=["the same", "another namespace", "all namespaces", "another group", "another verb", "another resource"],
)
def test_a_right_of_a_role_covers_its_own_verb_resource_group_and_namespace_only(
    change: dict[str, Any], is_covered: bool
) -> None:
    own = {"verb": "get", "group": "", "resource": "pods", "namespace": "prunella"}

    assert Right(**own).covers(Right(**{**own, **change})) is is_covered


def test_a_right_of_a_cluster_role_covers_every_namespace() -> None:
    right = Right(verb="get", group="", resource="pods", namespace=None)

    assert right.covers(Right(verb="get", group="", resource="pods", namespace="prunella"))
