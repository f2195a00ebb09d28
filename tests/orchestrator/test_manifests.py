"""What we render is what the official models know: no field is ours alone, none has another type."""

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.schemas import kept, kept_by_kubernetes, kept_by_trainer
from unit.launch.kubernetes.examples import examples
from unit.launch.kubernetes.installed import OVERLAYS, installed, offered, one, pod_of

_EXAMPLES = examples()


@pytest.mark.parametrize("document", _EXAMPLES.values(), ids=list(_EXAMPLES))
def test_a_manifest_has_only_fields_that_the_official_model_knows(document: dict[str, Any]) -> None:
    assert kept(document) == document


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_installed_has_only_fields_that_the_official_models_know(overlay: str) -> None:
    documents = installed(overlay)

    different = [document["metadata"]["name"] for document in documents if kept(document) != document]

    assert different == []


@pytest.mark.parametrize("file", ["base/network-policies.yaml", "overlays/s3/store.yaml"])
def test_what_is_there_to_be_uncommented_has_only_fields_that_the_official_models_know(file: str) -> None:
    for document in offered(file):
        assert kept(document) == document


@pytest.mark.parametrize("stage", ["gate_fabric", "training_segment"])
def test_the_pod_that_a_runtime_and_its_patches_make_has_only_fields_that_kubernetes_knows(stage: str) -> None:
    runtime = one(installed("s3"), "TrainingRuntime", "prunella-torch")

    pod = pod_of(_EXAMPLES[stage], runtime)

    assert kept_by_kubernetes(pod) == pod


# ------------------------------------------------------------------------------------------------ wrong ones are seen


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "automountToken"), False),
        (("spec", "containers", 0, "securityContext", "readOnlyRootFileSystem"), True),
        (("spec", "terminationGracePeriodSeconds"), "60"),
        (("spec", "affinity", "nodeAffinity", "required"), {}),
    ],
)
def test_a_pod_with_a_field_that_is_not_kubernetes_own_is_seen(path: tuple[Any, ...], value: object) -> None:
    wrong = changed(_EXAMPLES["gate_node"], path, value)

    assert kept_by_kubernetes(wrong) != wrong


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "podTemplateOverrides"), []),
        (("spec", "trainer", "resources"), {}),
        (("spec", "runtimePatches", 0, "trainingRuntimeSpec", "template", "spec", "suspend"), True),
    ],
)
def test_a_train_job_with_a_field_that_is_not_kubeflows_own_is_seen(path: tuple[Any, ...], value: object) -> None:
    wrong = changed(_EXAMPLES["training_segment"], path, value)

    assert kept_by_trainer(wrong) != wrong


@pytest.mark.parametrize(
    ("path", "value"), [(("spec", "trainer", "numNodes"), "2"), (("spec", "runtimeRef"), "prunella-torch")]
)
def test_a_train_job_with_a_wrong_type_is_refused(path: tuple[Any, ...], value: object) -> None:
    wrong = changed(_EXAMPLES["training_segment"], path, value)

    with pytest.raises((ValidationError, ValueError)):
        kept_by_trainer(wrong)


def changed(document: dict[str, Any], path: tuple[Any, ...], value: object) -> dict[str, Any]:
    """A copy with one field set."""
    copied = copy.deepcopy(document)
    place: Any = copied
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return copied
