"""A compiled pipeline as data: its tasks, and the edges between its steps, groups and pass-through tasks dissolved."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

#: The task that only carries on what a branch says; its edges belong to the branches.
PASS_THROUGH = "follow"


@dataclass
class Compiled:
    """The first document of a compiled file, and the platform's."""

    pipeline: dict[str, Any]
    platform: dict[str, Any]
    edges: set[tuple[str, str]] = field(default_factory=set)
    leads_to: dict[str, str] = field(default_factory=dict)

    def dags(self) -> Iterator[dict[str, Any]]:
        """The pipeline and every group in it."""
        parts = [self.pipeline["root"], *self.pipeline["components"].values()]
        return (part["dag"] for part in parts if "dag" in part)

    def tasks(self) -> Iterator[dict[str, Any]]:
        """Every task, in groups too."""
        for dag in self.dags():
            yield from dag["tasks"].values()

    def steps(self) -> Iterator[dict[str, Any]]:
        """Tasks that run a component, not a group."""
        return (task for task in self.tasks() if not self._is_group(task))

    def _is_group(self, task: dict[str, Any]) -> bool:
        return "dag" in self.pipeline["components"][task["componentRef"]["name"]]


def read(path: Path) -> Compiled:
    pipeline, *others = yaml.safe_load_all(path.read_text())
    compiled = Compiled(pipeline=pipeline, platform=others[0] if others else {})
    _walk(compiled, pipeline["root"]["dag"], before=set())
    return compiled


def _walk(compiled: Compiled, dag: dict[str, Any], before: set[str]) -> set[str]:
    """Add the edges of a group whose first steps follow `before`; returns its last steps."""
    ends: dict[str, set[str]] = {}
    tasks = dag["tasks"]
    for name in _in_order(tasks):
        task = tasks[name]
        upstream = [ends[up] for up in task.get("dependentTasks", [])]
        starts = _chosen(compiled, task, set().union(*upstream)) if upstream else before
        ends[name] = _add(compiled, task, starts)
    has_successor = {up for task in tasks.values() for up in task.get("dependentTasks", [])}
    return set().union(*(ends[name] for name in tasks if name not in has_successor))


def _in_order(tasks: dict[str, Any]) -> list[str]:
    done: list[str] = []
    while len(done) < len(tasks):
        done += [n for n, t in tasks.items() if n not in done and all(up in done for up in t.get("dependentTasks", []))]
    return done


def _chosen(compiled: Compiled, task: dict[str, Any], upstream: set[str]) -> set[str]:
    """Of the steps before a condition on where a branch leads, those branches that lead there."""
    wanted = re.search(rf"{PASS_THROUGH}[^=]*==\s+'([^']+)'", task.get("triggerPolicy", {}).get("condition", ""))
    return {step for step in upstream if wanted is None or compiled.leads_to.get(step) == wanted.group(1)}


def _add(compiled: Compiled, task: dict[str, Any], starts: set[str]) -> set[str]:
    component = compiled.pipeline["components"][task["componentRef"]["name"]]
    if "dag" in component:
        return _walk(compiled, component["dag"], starts)
    name = task["taskInfo"]["name"].replace("-", "_")
    if name.startswith(PASS_THROUGH):
        return starts
    if "to" in task["inputs"]["parameters"]:
        compiled.leads_to[name] = task["inputs"]["parameters"]["to"]["runtimeValue"]["constant"]
    branches = {branch for branch, to in compiled.leads_to.items() if to == name}
    compiled.edges |= {(start, name) for start in starts | branches if compiled.leads_to.get(start, name) == name}
    return {name}
