"""Nodes that are pods of one TrainJob: the first pod runs the stage, the others lend it their processes.

Every pod runs the same command. The first (PET_NODE_RANK 0) is the host: it runs the stage as it would on one machine, and
starts processes on the others through `PodLauncher`. The others are guests (`lend`): each calls the host and then tells
it, ten times a second, what runs there, what ended, and what the stage's scratch files say by now; the answer says what to
start or to kill, and which files the host shares. So the stage watches its own scratch folder and never learns that there
is a network. Nobody outlives the call: a guest whose host is gone kills what it started, and to a host whose guest is gone
everything there has ended.

Host and guest prove to each other that they know the request and, where they are given one, the store's secret key; after that
the line is not encrypted. What goes over it is JSON, and a file's name is matched against what was agreed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunella.config import Config
from prunella.node_pods.guest import be_guest
from prunella.node_pods.host import LOST, PodLauncher
from prunella.node_pods.line import Shared, secret_of
from prunella.node_processes import LocalLauncher, NodeLauncher
from prunella.records import Request, to_bytes
from prunella.scratch import attempt_scratch

__all__ = ["LOST", "PodLauncher", "Shared", "be_guest", "is_guest", "lend", "reached", "secret_of"]


@contextmanager
def reached(config: Config, request: Request, scratch: Path, shared: Shared) -> Iterator[NodeLauncher]:
    """The launcher for the nodes of a request, for the time of the block: of the pods of this TrainJob, else of this machine.

    A pod that has not called by `training.startup_timeout_s` counts as silent, not as an error.
    """
    if _pods() == 1:
        yield LocalLauncher()
        return
    with PodLauncher(request.nodes, scratch, shared, secret_of(to_bytes(request))) as launcher:
        launcher.wait_for_guests(config.training.startup_timeout_s)
        yield launcher


def lend(config: Config, request: Request) -> bool:
    """Lend this pod's processes to the pod that runs the stage of a request; whether it let go, and was not lost."""
    scratch = attempt_scratch(request.root, request.experiment, request.segment, request.attempt, opened_ns=request.opened_ns)
    return be_guest(scratch, secret_of(to_bytes(request)), patience_s=config.training.startup_timeout_s)


def is_guest() -> bool:
    """Whether this is a pod of a TrainJob that lends its processes to the first one."""
    return _pods() > 1 and int(os.environ["PET_NODE_RANK"]) > 0


def _pods() -> int:
    """Of this TrainJob. Source: Kubeflow Trainer 2.3 sets torchrun's PET_ variables in each pod, 2026-11."""
    return int(os.environ.get("PET_NNODES", "1"))
