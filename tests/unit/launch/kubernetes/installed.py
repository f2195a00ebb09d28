"""What `containers/kubernetes` installs, as data; and the pod that Kubeflow Trainer makes of a TrainJob there."""

import copy
from pathlib import Path
from typing import Any

import yaml

from prunella.launch.kubernetes.pods import Manifest

FOLDER = Path(__file__).resolve().parents[4] / "containers" / "kubernetes"
OVERLAYS = ("s3", "pvc")


def installed(overlay: str) -> list[Manifest]:
    """The documents of an overlay, as kustomize would gather them: ours use nothing of it but `resources`."""
    return _gathered(FOLDER / "overlays" / overlay)


def _gathered(folder: Path) -> list[Manifest]:
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert kustomization.keys() == {"apiVersion", "kind", "resources"}, "teach this function before using more of kustomize"
    found: list[Manifest] = []
    for resource in kustomization["resources"]:
        path = folder / resource
        found += _gathered(path) if path.is_dir() else yaml.safe_load_all(path.read_text())
    return found


def offered(file: str) -> list[Manifest]:
    """The documents of a file of the folder that stand there as comments, for whoever needs them: all behind `#---`."""
    _, mark, commented = (FOLDER / file).read_text().partition("#---\n")
    lines = commented.splitlines(keepends=True)
    assert mark
    assert all(line.startswith("#") for line in lines), "what is installed comes first in the file"
    return list(yaml.safe_load_all("".join(line[1:] for line in lines)))


def one(documents: list[Manifest], kind: str, name: str) -> Manifest:
    """The only document of this kind and name."""
    (found,) = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name]
    return found


def pod_of(job: Manifest, runtime: Manifest) -> Manifest:
    """A pod of a TrainJob: the runtime's, patched, with what the TrainJob says of its trainer.

    This is our reading of Kubeflow Trainer 2.3 (lists of named things merge by name, the trainer's fields replace those of the
    container `node`), not Trainer itself.
    """
    (patch,) = job["spec"]["runtimePatches"]
    patched = _merged(_template(runtime["spec"]["template"]), _template(patch["trainingRuntimeSpec"]["template"]))
    trainer = job["spec"]["trainer"]
    container = patched["spec"]["containers"][0]
    container |= {"image": trainer["image"], "command": trainer["command"], "env": trainer["env"]}
    container["resources"] = trainer["resourcesPerNode"]
    metadata = {"name": job["metadata"]["name"], "namespace": job["metadata"]["namespace"], **patched["metadata"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": patched["spec"]}


def _template(jobset: Manifest) -> Manifest:
    (job,) = jobset["spec"]["replicatedJobs"]
    assert job["name"] == "node"
    template: Manifest = job["template"]["spec"]["template"]
    return template


def _merged(base: Any, patch: Any) -> Any:
    if isinstance(base, dict) and isinstance(patch, dict):
        names = [*base, *(name for name in patch if name not in base)]
        return {name: _merged(base.get(name), patch[name]) if name in patch else copy.deepcopy(base[name]) for name in names}
    if isinstance(base, list) and isinstance(patch, list) and all("name" in item for item in [*base, *patch]):
        merged = _merged({item["name"]: item for item in base}, {item["name"]: item for item in patch})
        return list(merged.values())
    return copy.deepcopy(patch)
