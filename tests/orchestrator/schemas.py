"""The official schemas of what we write, as clients that their projects generate from them carry them.

A document passes when the official model keeps all of it: what the model does not know it drops, and what has another type it
refuses or turns into another value. So a document that comes back as it was has known fields only, of the right types.
Rules that servers check beyond the schema (cross-field rules, quotas, webhooks) are not in these models.
"""

import inspect
import json
import re
from types import SimpleNamespace
from typing import Any

import pytest

_WHO_HAS_IT = "in requirements/dev.lock (make) and requirements/orchestrator.lock (make orchestrator: .venv-orchestrator)"

kubernetes_client = pytest.importorskip("kubernetes.client", reason=f"the kubernetes client is {_WHO_HAS_IT}")


def trainer_models() -> Any:
    """Kubeflow Trainer's models; skips where they are not installed."""
    return pytest.importorskip("kubeflow_trainer_api.models", reason=f"kubeflow-trainer-api is {_WHO_HAS_IT}")


def kept_by_kubernetes(document: dict[str, Any]) -> dict[str, Any]:
    """The document as the Kubernetes client's model of its kind keeps it."""
    client = kubernetes_client.ApiClient()
    model = _MODELS[document["apiVersion"], document["kind"]]
    found = client.deserialize(SimpleNamespace(data=json.dumps(document)), model, *_content_type(client))
    kept: dict[str, Any] = client.sanitize_for_serialization(found)
    return kept


def _content_type(client: Any) -> tuple[str, ...]:
    """Newer clients ask in what form the data comes."""
    return ("application/json",) if client.deserialize.__code__.co_argcount > 3 else ()


_MODELS = {
    ("v1", "Pod"): "V1Pod",
    ("v1", "DeleteOptions"): "V1DeleteOptions",
    ("v1", "Node"): "V1Node",
    ("v1", "Namespace"): "V1Namespace",
    ("v1", "ServiceAccount"): "V1ServiceAccount",
    ("v1", "ConfigMap"): "V1ConfigMap",
    ("v1", "PersistentVolumeClaim"): "V1PersistentVolumeClaim",
    ("rbac.authorization.k8s.io/v1", "Role"): "V1Role",
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): "V1RoleBinding",
    ("rbac.authorization.k8s.io/v1", "ClusterRole"): "V1ClusterRole",
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"): "V1ClusterRoleBinding",
    ("networking.k8s.io/v1", "NetworkPolicy"): "V1NetworkPolicy",
}


def kept_by_trainer(document: dict[str, Any]) -> dict[str, Any]:
    """The document as Kubeflow Trainer's model of its kind keeps it."""
    kind = {"TrainJob": "TrainerV1alpha1TrainJob", "TrainingRuntime": "TrainerV1alpha1TrainingRuntime"}[document["kind"]]
    kept: dict[str, Any] = getattr(trainer_models(), kind).from_dict(document).to_dict()
    return kept


def kept(document: dict[str, Any]) -> dict[str, Any]:
    """The document as the official model keeps it."""
    is_trainers = document["apiVersion"].startswith("trainer.kubeflow.org/")
    return kept_by_trainer(document) if is_trainers else kept_by_kubernetes(document)


def parameters_of(method: str) -> set[str]:
    """What may stand in the query of a request, by the name of the method that the Kubernetes client makes it with.

    The client is generated from the official schema, and names them only where it sends them.
    """
    api = "CustomObjectsApi" if method.endswith("_custom_object") else "CoreV1Api"
    source = inspect.getsource(getattr(getattr(kubernetes_client, api), f"{method}_with_http_info"))
    found = set(re.findall(r"query_params\.append\(\('(\w+)'", source))
    assert "query_params" in source, "teach this function how this client names parameters"
    return found
