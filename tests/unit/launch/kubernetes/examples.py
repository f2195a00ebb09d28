"""One start of each stage, as an attempt of a small experiment would ask for it; and the golden manifests made of them.

`python tests/unit/launch/kubernetes/examples.py` writes those anew (`make golden`).
"""

from pathlib import Path

import yaml

from prunella.launch.kubernetes.naming import ClusterLaunch
from prunella.launch.kubernetes.pods import Manifest
from prunella.launch.kubernetes.render import manifest
from prunella.launch.kubernetes.settings import ClusterSettings
from prunella.records import (
    CheckpointRef,
    DataPrepRequest,
    EvaluateRequest,
    GateFabricRequest,
    GateNodeRequest,
    NodeRef,
    Request,
    Stage,
    TrainRequest,
    ValidateRequest,
)

GOLDEN = Path(__file__).resolve().parents[3] / "golden" / "kubernetes"

BUCKET = "s3://campaigns/prunella"
FOLDER = "/prunella/root"
NODES = tuple(NodeRef(name=f"node-{index}", devices=8) for index in range(3))
_PREFIX = "experiments/demo/segments/0003/attempts/01"
_CHECKPOINT = CheckpointRef(name="0003-01-00", step=160, manifest_sha256="c" * 64)
#: What every request on behalf of one attempt has in common.
_ATTEMPT = {
    "root": BUCKET,
    "experiment": "demo",
    "config_digest": "d" * 64,
    "segment": 3,
    "attempt": 1,
    "run_index": 0,
    "opened_ns": 1_795_000_000_000_000_000,
}


def request(stage: Stage, **changes: object) -> Request:
    """A request of this stage, with the given fields changed."""
    kind, fields = _KINDS[stage]
    common = {**_ATTEMPT, "stage": stage, "output": f"{_PREFIX}/{stage}.json"}
    return kind(**{**common, **fields, **changes})


_KINDS: dict[Stage, tuple[type[Request], dict[str, object]]] = {
    Stage.DATA_PREP: (DataPrepRequest, {"attempt": 0}),
    Stage.GATE_NODE: (GateNodeRequest, {"node": "node-1", "nodes": NODES}),
    Stage.GATE_FABRIC: (GateFabricRequest, {"nodes": (NODES[0], NODES[2]), "wanted": 2}),
    Stage.TRAINING_SEGMENT: (
        TrainRequest,
        {
            "nodes": (NODES[0], NODES[2]),
            "first_step": 121,
            "last_step": 160,
            "total_steps": 200,
            "dataset": "f" * 16,
            "resume": _CHECKPOINT,
        },
    ),
    Stage.CHECKPOINT_VALIDATION: (ValidateRequest, {"candidate": _CHECKPOINT, "dataset": "f" * 16}),
    Stage.EVALUATION: (EvaluateRequest, {"checkpoint": _CHECKPOINT, "dataset": "f" * 16}),
}


def launch(stage: Stage, *, start: int = 0, excluded: tuple[str, ...] = (), **changes: object) -> ClusterLaunch:
    """A start of this stage, with the given fields of its request changed."""
    return ClusterLaunch(
        request_key=f"{_PREFIX}/requests/{stage}.json",
        request=request(stage, **changes),
        start=start,
        excluded=excluded,
        timeout_s=120.0 if stage is Stage.GATE_NODE else None,
    )


SETTINGS = ClusterSettings(device_resource="nvidia.com/gpu")
FOLDER_SETTINGS = ClusterSettings(claim="prunella-root")


def examples() -> dict[str, Manifest]:
    """A manifest a stage, by name. Node-1 failed its gate, so that nothing after it may go there."""
    found = {"data_prep": manifest(launch(Stage.DATA_PREP, root=FOLDER), FOLDER_SETTINGS)}
    found["gate_node"] = manifest(launch(Stage.GATE_NODE), SETTINGS)
    for stage in (Stage.GATE_FABRIC, Stage.TRAINING_SEGMENT, Stage.CHECKPOINT_VALIDATION, Stage.EVALUATION):
        found[stage.value] = manifest(launch(stage, excluded=("node-1",)), SETTINGS)
    return found


def as_text(document: Manifest) -> str:
    """As `prunella kubernetes render` prints it."""
    return yaml.safe_dump(document, sort_keys=False, width=120)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, document in examples().items():
        (GOLDEN / f"{name}.yaml").write_text(as_text(document))
