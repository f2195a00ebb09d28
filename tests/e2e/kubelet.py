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
from prunella.node_processes import LOOPBACK, free_port

_EPOCH = "2026-11-21T09:00:00.000000000Z"


@dataclass
class Kubelet(Cluster):
    """As many nodes as somebody names, under a folder that holds the scratch and the log of each pod."""

    folder: Path = Path()
    environment: dict[str, str] = field(default_factory=dict)
    progress: dict[str, dict[str, Any]] = field(default_factory=dict)
    processes: dict[str, list[subprocess.Popen[bytes]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.on_create = self._start

    def _start(self, document: dict[str, Any]) -> None:
        """Each pod on a node of its own; the first pod on the last node, because Kubeflow promises no order."""
        name, nodes = document["metadata"]["name"], sorted(nodes_of(document), reverse=True)
        told = self._told_by_trainer(document)
        self.processes[name] = []
        for index, node in enumerate(nodes):
            variables = {**told, "PET_NODE_RANK": str(index)} if told else {}
            self.processes[name].append(self._pod(document, f"{name}-{index}", node, variables))

    def _pod(self, document: dict[str, Any], pod: str, node: str, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        scratch = self.folder / pod
        scratch.mkdir(parents=True)
        container = container_of(document)
        own = {entry["name"]: entry.get("value", node).replace("/scratch", str(scratch)) for entry in container["env"]}
        _, *arguments = container["command"]
        with (self.folder / f"{pod}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, *arguments],
                env={**self.environment, **own, **variables},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def state_of(self, document: dict[str, Any]) -> dict[str, Any]:
        codes = [process.poll() for process in self.processes[document["metadata"]["name"]]]
        if document["kind"] == "Pod":
            return running() if codes[0] is None else ended(abs(codes[0]))
        told = self.progress.get(document["metadata"]["name"], {})
        has_failed, is_running = any(codes), None in codes
        if has_failed:
            self._end(document["metadata"]["name"])
        if is_running and not has_failed:
            return job_status(ready=1, **told)
        return job_status(ended="Failed" if has_failed else "Complete", **told)

    def _end(self, name: str) -> None:
        """As JobSet does once a pod failed: the others are told to go."""
        for process in self.processes[name]:
            process.terminate()

    def answer(self, method: str, path: str, body: bytes, content_type: str = "application/json") -> tuple[int, Any]:
        """Besides the API server, this is the server that a stage tells how far it is."""
        _, is_told, name = path.partition("/progress/")
        if not is_told:
            return super().answer(method, path, body, content_type)
        self.progress[name] = json.loads(body)["trainerStatus"]
        return 200, {}

    def log_of(self, name: str) -> str:
        """The whole log once the pod has ended; nothing before, because it would be shown again with each reading."""
        if self.processes[name][0].poll() is None:
            return ""
        lines = (self.folder / f"{name}-0.log").read_text(errors="replace").splitlines()
        return "".join(f"{_EPOCH} {line}\n" for line in lines)

    def _told_by_trainer(self, document: dict[str, Any]) -> dict[str, str]:
        """What Kubeflow Trainer tells every pod of a TrainJob: for torchrun, and where its status server is.

        Source: Trainer 2.3's plugins `torch` and `trainjobstatus`, 2026-11. Here all pods share one address.
        """
        if document["kind"] == "Pod":
            return {}
        trainer, name = document["spec"]["trainer"], document["metadata"]["name"]
        token = self.folder / f"{name}.token"
        token.write_text("nobody's")
        return {
            "PET_NNODES": str(trainer["numNodes"]),
            "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
            "PET_MASTER_ADDR": LOOPBACK,
            "PET_MASTER_PORT": str(free_port()),
            "KUBEFLOW_TRAINER_SERVER_URL": f"{self.url}/progress/{name}",
            "KUBEFLOW_TRAINER_SERVER_TOKEN": str(token),
        }

    def end(self) -> None:
        """Nothing is left running."""
        for process in [one for processes in self.processes.values() for one in processes]:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def nodes_of(document: dict[str, Any]) -> list[str]:
    """The nodes that a pod or TrainJob may go onto; for one that may go anywhere, one that is not in the ledger."""
    spec: dict[str, Any] = document["spec"]
    if document["kind"] == "TrainJob":
        (patch,) = spec["runtimePatches"]
        (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        spec = job["template"]["spec"]["template"]["spec"]
    wanted = spec.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    rules = [rule for term in wanted.get("nodeSelectorTerms", ()) for rule in term["matchExpressions"]]
    return next((rule["values"] for rule in rules if rule["operator"] == "In"), ["any"])


def container_of(document: dict[str, Any]) -> dict[str, Any]:
    """Command and environment of a pod, or of the pods of a TrainJob."""
    spec: dict[str, Any] = document["spec"]
    found: dict[str, Any] = spec["containers"][0] if document["kind"] == "Pod" else spec["trainer"]
    return found
