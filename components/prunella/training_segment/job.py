"""What the launcher hands to its ranks, and the files of an attempt's scratch folder they share.

job.json                     configuration and request, as the launcher got them
rank-000.heartbeat.json      the last word of a rank, replaced at every phase
rank-000.exit.json           its exit note
steps.jsonl                  one line a finished step, by rank 0
progress.json                the same for a live display, replaced every step
stop                         exists when every rank is to finish its step, save and end
training-<node>.log          output of a node's agent and ranks
"""

import json
from dataclasses import dataclass
from pathlib import Path

from prunella import codec
from prunella.config import Config
from prunella.node_pods import Shared
from prunella.records import NodeRef, TrainRequest
from prunella.scratch import write_atomically

STEPS_FILE = "steps.jsonl"
PROGRESS_FILE = "progress.json"
_STOP_FILE = "stop"
_JOB_FILE = "job.json"
_VOLATILE = ("rank-*.json", STEPS_FILE, PROGRESS_FILE, _STOP_FILE, _JOB_FILE, "training-*.log", "*.tmp")
#: What crosses to nodes that are other machines, and back.
SHARED = Shared(from_guests=("rank-*.json", "training-*.log", STEPS_FILE, PROGRESS_FILE), from_host=(_JOB_FILE, _STOP_FILE))


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One attempt at training, as launcher and ranks see it."""

    config: Config
    request: TrainRequest
    launched_ns: int


def prepare_scratch(folder: Path, job: Job) -> None:
    """Clear what an earlier life of this folder left, and write the job. A stale exit note would be believed."""
    for pattern in _VOLATILE:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    write_atomically(folder / _JOB_FILE, json.dumps(codec.encode(job)))


def read_job(folder: Path) -> Job:
    """The job of this scratch folder."""
    path = folder / _JOB_FILE
    return codec.decode(Job, json.loads(path.read_text()), str(path))


def ask_to_stop(folder: Path) -> None:
    """Ask every rank to finish its step, save and end."""
    (folder / _STOP_FILE).touch()


def is_stop_asked(folder: Path) -> bool:
    """Whether they were asked to."""
    return (folder / _STOP_FILE).exists()


def rank_nodes(nodes: tuple[NodeRef, ...]) -> tuple[NodeRef, ...]:
    """The node of each rank: torchrun numbers ranks node by node."""
    return tuple(node for node in nodes for _ in range(node.devices))


def node_log(folder: Path, node: NodeRef) -> Path:
    """Where a node's agent and ranks write."""
    return folder / f"training-{node.name}.log"
