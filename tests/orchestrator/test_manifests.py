"""What we render is what the official models know: no field is ours alone, none has another type."""

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.schemas import kept, kept_by_kubernetes, kept_by_trainer
from unit.launch.kubernetes.examples import examples

_EXAMPLES = examples()


@pytest.mark.parametrize("document", _EXAMPLES.values(), ids=list(_EXAMPLES))
def test_a_manifest_has_only_fields_that_the_official_model_knows(document: dict[str, Any]) -> None:
    assert kept(document) == document


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
