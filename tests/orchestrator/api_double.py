"""A stand-in for a cluster's API server over plain HTTP: pods and TrainJobs, as far as starting, watching and ending one goes,
and nodes.

It checks everything it is sent, query and options of a deletion too, against the official schema, allows what the installed
roles allow in their namespace and API group and nothing else, refuses a name that is taken and a change of a node that somebody
changed meanwhile, and answers each look at a pod with the next state of a plan. It runs nothing and schedules nothing: what a
real cluster would do with a pod is the plan of the test. Of a query it is stricter than a real server, which passes over what
it does not know.
"""

import dataclasses
import datetime
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import yaml

from orchestrator.schemas import kept_by_kubernetes, kept_by_trainer, parameters_of
from prunella.launch.kubernetes.naming import LAUNCH_LABEL
from unit.launch.kubernetes.installed import installed, one

_PATH = re.compile(
    r"(/api/v1|/apis/(?P<group>trainer\.kubeflow\.org)/v1alpha1)"
    r"(/namespaces/(?P<namespace>[^/]+)/(?P<kind>pods|events|trainjobs)|/(?P<nodes>nodes))"
    r"(/(?P<name>[^/?]+))?(?P<log>/log)?(\?(?P<query>.*))?$"
)
#: Source: RFC 1123 labels, which a pod's host name is one of.
_POD_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_METHODS = {"POST": "create", "DELETE": "delete", "PATCH": "patch", "GET": "get"}
#: By which method of the client a request is made.
_CALLS = {
    ("create", "pods"): "create_namespaced_pod",
    ("get", "pods"): "read_namespaced_pod",
    ("list", "pods"): "list_namespaced_pod",
    ("delete", "pods"): "delete_namespaced_pod",
    ("get", "pods/log"): "read_namespaced_pod_log",
    ("get", "nodes"): "read_node",
    ("patch", "nodes"): "patch_node",
    ("create", "trainjobs"): "create_namespaced_custom_object",
    ("get", "trainjobs"): "get_namespaced_custom_object",
    ("delete", "trainjobs"): "delete_namespaced_custom_object",
}


def running() -> dict[str, Any]:
    return {"phase": "Running", "containerStatuses": [_container({"running": {}})]}


def ended(exit_code: int = 0) -> dict[str, Any]:
    phase = "Failed" if exit_code else "Succeeded"
    finished = datetime.datetime.now(datetime.UTC).isoformat()
    return {"phase": phase, "containerStatuses": [_container({"terminated": {"exitCode": exit_code, "finishedAt": finished}})]}


def evicted() -> dict[str, Any]:
    """Before any container started."""
    return {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}


def evicted_while_created() -> dict[str, Any]:
    """The kubelet has a word about its container, which never ran and has no log."""
    return {**evicted(), "containerStatuses": [_container({"waiting": {"reason": "ContainerCreating"}})]}


def evicted_while_running() -> dict[str, Any]:
    return {**ended(137), "reason": "Evicted"}


def kept_waiting(reason: str, message: str) -> dict[str, Any]:
    """The kubelet cannot make the container."""
    return {"phase": "Pending", "containerStatuses": [_container({"waiting": {"reason": reason, "message": message}})]}


def unscheduled(message: str) -> dict[str, Any]:
    """No node takes it."""
    since = "2026-11-21T09:00:00Z"
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "lastTransitionTime": since}
    return {"phase": "Pending", "conditions": [{**condition, "message": message}]}


PENDING: dict[str, Any] = {"phase": "Pending"}
#: The pod is deleted by somebody, or its node is.
GONE: dict[str, Any] = {}


def job_status(*, ready: int = 0, active: int = 1, ended: str = "", **trainer: Any) -> dict[str, Any]:
    """What Kubeflow says of a TrainJob of one job: whether it runs, with which condition it ended, what the stage reported."""
    jobs = [{"name": "node", "active": active, "ready": ready, "failed": 0, "succeeded": 0, "suspended": 0}]
    since = "2026-11-21T09:00:00Z"
    reason = {"Complete": "JobsCompleted", "Failed": "JobsFailed"}.get(ended, "")
    condition = {"type": ended, "status": "True", "reason": reason, "message": "as planned", "lastTransitionTime": since}
    told = {"trainerStatus": {**trainer, "lastUpdatedTime": since}} if trainer else {}
    return {"jobsStatus": jobs, **({"conditions": [condition]} if ended else {}), **told}


def _container(state: dict[str, Any]) -> dict[str, Any]:
    return {"name": "stage", "image": "i", "imageID": "i", "ready": True, "restartCount": 0, "state": state}


@dataclass(frozen=True, kw_only=True, slots=True)
class Right:
    """One verb on one resource of an API group. Without a namespace it holds in all of them, and on what lies in none."""

    verb: str
    group: str
    resource: str
    namespace: str | None

    def covers(self, asked: "Right") -> bool:
        """Whether whoever has this right may do what is asked."""
        return self == dataclasses.replace(asked, namespace=asked.namespace if self.namespace is not None else None)


def rights() -> list[Right]:
    """Those of the roles that are installed for Airflow's workers."""
    documents = installed("s3")
    roles = [one(documents, "Role", "prunella-orchestrator"), one(documents, "ClusterRole", "prunella-node-keeper")]
    return [
        Right(verb=verb, group=group, resource=resource, namespace=role["metadata"].get("namespace"))
        for role in roles
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    ]


def granted(*resources: str) -> set[tuple[str, str]]:
    """(verb, resource) of every right on these resources: what `Cluster.asked` holds when all of them were used."""
    return {(right.verb, right.resource) for right in rights() if right.resource in resources}


@dataclass
class Cluster:
    """What the stand-in knows and has been asked.

    Attributes:
        plan: the states that a pod or TrainJob is seen in, one a look; the last one stays.
        leaving: for how many looks the pods of a TrainJob that is deleted are still there, or it is, where somebody deleted it
            in the foreground.
        pod_of_job: the state that the pod of a TrainJob is seen in.
        on_look: called with the name at each look at a pod.
        on_create: what the stage does, called with each pod that is made.
        log: what the stage wrote, with the times that the server adds.
        cut_logs: how many of the next readings of a log break off in the middle.
        log_refusals: the statuses that the next readings of a log are answered with.
        refusals_of_deletions: the statuses that the next deletions of a pod are answered with.
        blind: how many of the next looks at a pod or TrainJob say that there is none.
        unavailable: how many of the next looks at a pod or TrainJob are answered with 503.
        meddling: changes of a node that others make, each just before a patch of ours arrives.
        lost_answers: how many of the next patches and creations are done and never answered.
        away_after: after how many requests the server cuts every connection without an answer; None for never.
        patches: every patch of a node that was accepted, with the node's name.
    """

    plan: list[dict[str, Any]] = field(default_factory=lambda: [PENDING, running(), running(), ended()])
    on_look: Callable[[str], None] = lambda name: None
    on_create: Callable[[dict[str, Any]], None] = lambda document: None
    log: str = "2026-11-21T09:00:00.000000000Z stage_started\n2026-11-21T09:00:01.000000000Z stage_recorded\n"
    cut_logs: int = 0
    log_refusals: list[int] = field(default_factory=list)
    refusals_of_deletions: list[int] = field(default_factory=list)
    unavailable: int = 0
    leaving: int = 0
    pod_of_job: dict[str, Any] = field(default_factory=running)
    blind: int = 0
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    meddling: list[dict[str, Any]] = field(default_factory=list)
    lost_answers: int = 0
    away_after: int | None = None
    patches: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    url: str = ""

    def kubeconfig(self, folder: Path) -> str:
        """A file that leads a client here."""
        path = folder / "kubeconfig"
        named = {"clusters": [{"name": "double", "cluster": {"server": self.url}}], "users": [{"name": "nobody", "user": {}}]}
        contexts = [{"name": "double", "context": {"cluster": "double", "user": "nobody"}}]
        path.write_text(yaml.safe_dump({**named, "contexts": contexts, "current-context": "double"}))
        return str(path)

    def pod(self, document: dict[str, Any], *states: dict[str, Any]) -> None:
        """A pod that was there before, with what is left of its plan."""
        self.pods[document["metadata"]["name"]] = document
        self.plan = list(states)

    def node(self, name: str, *, labels: dict[str, str] | None = None, **spec: Any) -> None:
        """A node of the cluster."""
        metadata = {"name": name, "resourceVersion": "1", "labels": {"kubernetes.io/hostname": name, **(labels or {})}}
        self.nodes[name] = {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec}

    def state_of(self, document: dict[str, Any]) -> dict[str, Any]:
        """What a pod or TrainJob is seen in now."""
        return self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]

    def log_of(self, name: str) -> str:
        """What a pod has written by now."""
        return self.log

    # ------------------------------------------------------------------------------------------------ answers

    def answer(self, method: str, path: str, body: bytes, content_type: str = "application/json") -> tuple[int, Any]:
        match = _PATH.match(path)
        if match is None:
            return self._refuse(404, f"no such path: {path}")
        verb, resource = _METHODS[method], (match["kind"] or match["nodes"]) + (match["log"] or "")
        verb = "list" if verb == "get" and match["name"] is None else verb
        self.asked.append((verb, resource))
        asked = Right(verb=verb, group=match["group"] or "", resource=resource, namespace=match["namespace"])
        if not any(right.covers(asked) for right in rights()):
            return self._refuse(403, f"{asked} is not granted")
        query = dict(parse_qsl(match["query"] or "", keep_blank_values=True))
        if unknown := query.keys() - parameters_of(_CALLS[verb, resource]):
            return self._refuse(400, f"{verb} {resource} has no parameter {sorted(unknown)}")
        if verb == "delete" and body:
            if (options := _delete_options(body)) is None:
                return self._refuse(400, "the options of the deletion have a field or a type that Kubernetes does not know")
            query |= options
        if verb == "create" and json.loads(body)["metadata"].get("namespace", match["namespace"]) != match["namespace"]:
            return self._refuse(400, "the namespace of the object does not match the namespace of the request")
        if resource == "nodes":
            return self._node(verb, match["name"], body, content_type)
        if resource == "trainjobs":
            return self._job(verb, match["name"], body, query.get("propagationPolicy"))
        if verb == "list":
            return self._list(query.get("labelSelector", ""))
        if verb == "create":
            return self._create(json.loads(body))
        if match["name"] not in self.pods or self.blind:
            self.blind -= bool(self.blind)
            return 404, _status(404, "NotFound")
        if resource == "pods/log":
            return self._log(match["name"])
        return self._delete(match["name"]) if verb == "delete" else self._look(match["name"])

    def _create(self, document: dict[str, Any]) -> tuple[int, Any]:
        if kept_by_kubernetes(document) != document:
            return self._refuse(422, "the pod has a field or a type that Kubernetes does not know")
        name = document["metadata"]["name"]
        if not _POD_NAME.fullmatch(name):
            return self._refuse(422, f"{name} cannot be the name of a pod")
        if name in self.pods:
            return 409, _status(409, "AlreadyExists")
        self.pods[name] = document
        self.on_create(document)
        return 201, {**document, "status": PENDING}

    def _is_away_for(self, name: str) -> bool:
        """Whether this look at a pod or TrainJob, or at the pods of one, is not answered."""
        self.on_look(name)
        self.unavailable -= (is_away := self.unavailable > 0)
        return is_away

    def _look(self, name: str) -> tuple[int, Any]:
        if self._is_away_for(name):
            return 503, _status(503, "ServiceUnavailable")
        state = self.state_of(self.pods[name])
        if state == GONE:
            del self.pods[name]
            return 404, _status(404, "NotFound")
        return 200, {**self.pods[name], "status": state}

    def _list(self, selector: str) -> tuple[int, Any]:
        """The pods of one TrainJob; of nobody else's are we asked."""
        label, _, name = selector.partition("=")
        if label != LAUNCH_LABEL:
            return self._refuse(400, f"this stand-in lists the pods of one start, not of {selector!r}")
        if self._is_away_for(name):
            return 503, _status(503, "ServiceUnavailable")
        self.leaving -= name not in self.jobs
        is_there = name in self.jobs or self.leaving >= 0
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"{name}-node-0-0"}, "status": self.pod_of_job}
        return 200, {"apiVersion": "v1", "kind": "PodList", "items": [pod] if is_there else []}

    def _log(self, name: str) -> tuple[int, Any]:
        if self.log_refusals:
            code = self.log_refusals.pop(0)
            return code, _status(code, "no log")
        return 200, self.log_of(name)

    def _delete(self, name: str) -> tuple[int, Any]:
        if self.refusals_of_deletions:
            code = self.refusals_of_deletions.pop(0)
            return code, _status(code, "not now")
        return 200, self.pods.pop(name)

    def _job(self, verb: str, name: str, body: bytes, propagation: str | None) -> tuple[int, Any]:
        if verb == "create":
            return self._create_job(json.loads(body))
        if name not in self.jobs or self.blind:
            self.blind -= bool(self.blind)
            return 404, _status(404, "NotFound")
        if verb == "delete":
            if propagation != "Background":
                return self._refuse(422, "Kubeflow would make the pods of a TrainJob anew that waits for them to go")
            return 200, self.jobs.pop(name)
        return self._look_at_job(name)

    def _create_job(self, document: dict[str, Any]) -> tuple[int, Any]:
        try:
            is_known = kept_by_trainer(document) == document
        except ValueError:  # pydantic's own error is one
            is_known = False
        if not is_known:
            return self._refuse(422, "the TrainJob has a field or a type that Kubeflow does not know")
        name = document["metadata"]["name"]
        if name in self.jobs:
            return 409, _status(409, "AlreadyExists")
        self.jobs[name] = document
        self.on_create(document)
        return 201, document

    def _look_at_job(self, name: str) -> tuple[int, Any]:
        if self._is_away_for(name):
            return 503, _status(503, "ServiceUnavailable")
        if "deletionTimestamp" in self.jobs[name]["metadata"]:
            self.leaving -= 1
        state = self.state_of(self.jobs[name])
        if state == GONE or self.leaving < 0:
            del self.jobs[name]
            return 404, _status(404, "NotFound")
        return 200, {**self.jobs[name], "status": state}

    def _node(self, verb: str, name: str, body: bytes, content_type: str) -> tuple[int, Any]:
        if name not in self.nodes:
            return 404, _status(404, "NotFound")
        if verb == "get":
            return 200, self.nodes[name]
        if content_type != "application/merge-patch+json":
            return self._refuse(415, f"this stand-in knows merge patches only, not {content_type}")
        if self.meddling:
            self._change(name, self.meddling.pop(0))
        patch = json.loads(body)
        if patch["metadata"].get("resourceVersion", "") != self.nodes[name]["metadata"]["resourceVersion"]:
            return 409, _status(409, "Conflict")
        changed = merged(self.nodes[name], patch)
        if kept_by_kubernetes(changed) != changed:
            return self._refuse(422, "the node has a field or a type that Kubernetes does not know")
        self.patches.append((name, patch))
        return 200, self._change(name, patch)

    def _change(self, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        """Every change gives the node another version."""
        changed: dict[str, Any] = merged(self.nodes[name], patch)
        changed["metadata"]["resourceVersion"] = str(int(self.nodes[name]["metadata"]["resourceVersion"]) + 1)
        self.nodes[name] = changed
        return changed

    def _refuse(self, code: int, why: str) -> tuple[int, Any]:
        self.refused.append(why)
        return code, _status(code, why)


def _delete_options(body: bytes) -> dict[str, Any] | None:
    """What the body of a deletion asks for; None where the official model does not keep all of it."""
    options = {"apiVersion": "v1", "kind": "DeleteOptions", **json.loads(body)}
    if (options["apiVersion"], options["kind"]) != ("v1", "DeleteOptions"):
        return None
    try:
        return options if kept_by_kubernetes(options) == options else None
    except ValueError:  # a number that is none
        return None


def merged(found: Any, patch: Any) -> Any:
    """A JSON merge patch applied. Source: RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    kept = found if isinstance(found, dict) else {}
    both = {name: merged(kept.get(name), patch[name]) if name in patch else kept[name] for name in [*kept, *patch]}
    return {name: value for name, value in both.items() if value is not None}


def _status(code: int, reason: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason}


@contextmanager
def serving(cluster: Cluster) -> Iterator[Cluster]:
    """The stand-in on a free port of this machine, for the time of the block."""

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if cluster.away_after is not None and len(cluster.asked) >= cluster.away_after:
                return
            code, found = cluster.answer(self.command, self.path, body, self.headers.get("Content-Type") or "")
            if self.command in ("PATCH", "POST") and cluster.lost_answers:
                cluster.lost_answers -= 1
                return
            data = found.encode() if isinstance(found, str) else json.dumps(found).encode()
            is_cut = isinstance(found, str) and cluster.cut_logs > 0
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if isinstance(found, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if is_cut else data)
            cluster.cut_logs -= is_cut

        do_GET = do_POST = do_DELETE = do_PATCH = _serve

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    cluster.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield cluster
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
