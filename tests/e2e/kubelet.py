"""A stand-in for a whole cluster: the stand-in for its API server, which runs what it is given as processes of this machine.

The commands and what they are told are those of the manifests, so that stages, records and weights are real. There is no
container, no scheduler and no network policy: what Kubernetes and Kubeflow themselves would do is our reading of them.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.api_double import Cluster, ended, job_status, running

_EPOCH = "2026-11-21T09:00:00.000000000Z"


@dataclass
class Kubelet(Cluster):
    """The node `node-0`, under a folder that holds the scratch and the log of each pod."""

    folder: Path = Path()
    environment: dict[str, str] = field(default_factory=dict)
    progress: dict[str, dict[str, Any]] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.on_create = self._start

    def _start(self, document: dict[str, Any]) -> None:
        name = document["metadata"]["name"]
        scratch = self.folder / name
        scratch.mkdir(parents=True)
        container = container_of(document)
        own = {entry["name"]: entry.get("value", "node-0").replace("/scratch", str(scratch)) for entry in container["env"]}
        _, *arguments = container["command"]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *arguments],
                env={**self.environment, **own, **self._variables_of_trainer(document)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def state_of(self, document: dict[str, Any]) -> dict[str, Any]:
        process = self.processes[document["metadata"]["name"]]
        code = process.poll()
        if document["kind"] == "Pod":
            return running() if code is None else ended(abs(code))
        told = self.progress.get(document["metadata"]["name"], {})
        return job_status(ready=1, **told) if code is None else job_status(ended="Failed" if code else "Complete", **told)

    def answer(self, method: str, path: str, body: bytes, content_type: str = "application/json") -> tuple[int, Any]:
        """Besides the API server, this is the server that a stage tells how far it is."""
        _, is_told, name = path.partition("/progress/")
        if not is_told:
            return super().answer(method, path, body, content_type)
        self.progress[name] = json.loads(body)["trainerStatus"]
        return 200, {}

    def log_of(self, name: str) -> str:
        """The whole log once the pod has ended; nothing before, because it would be shown again with each reading."""
        if self.processes[name].poll() is None:
            return ""
        lines = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()
        return "".join(f"{_EPOCH} {line}\n" for line in lines)

    def _variables_of_trainer(self, document: dict[str, Any]) -> dict[str, str]:
        """What Kubeflow Trainer tells every pod of a TrainJob: for torchrun, and where its status server is.

        Source: Trainer 2.3's plugins `torch` and `trainjobstatus`, 2026-11.
        """
        if document["kind"] == "Pod":
            return {}
        trainer, name = document["spec"]["trainer"], document["metadata"]["name"]
        token = self.folder / f"{name}.token"
        token.write_text("nobody's")
        return {
            "PET_NNODES": str(trainer["numNodes"]),
            "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
            "PET_NODE_RANK": "0",
            "PET_MASTER_ADDR": f"{name}-node-0-0.{name}",
            "PET_MASTER_PORT": "29500",
            "KUBEFLOW_TRAINER_SERVER_URL": f"{self.url}/progress/{name}",
            "KUBEFLOW_TRAINER_SERVER_TOKEN": str(token),
        }

    def end(self) -> None:
        """Nothing is left running."""
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def container_of(document: dict[str, Any]) -> dict[str, Any]:
    """Command and environment of a pod, or of the pods of a TrainJob."""
    spec: dict[str, Any] = document["spec"]
    found: dict[str, Any] = spec["containers"][0] if document["kind"] == "Pod" else spec["trainer"]
    return found
