"""Tells Kubeflow how far training is, where this runs in a TrainJob whose cluster wants to know; elsewhere nothing.

A thread of the launcher reads the last step that scratch has and hands it to Kubeflow's own `update_trainjob_status`. What it
tells is for people (`kubectl get trainjob`, the log of Airflow's task). Nobody decides by it, and a server that is slow, away,
or says no costs training nothing.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunella.records import StepRecord, TrainRequest
from prunella.training_segment.step_log import read_last

logger = logging.getLogger(__name__)

#: Set by Kubeflow Trainer 2.3 with its feature gate TrainJobStatus. Source: kubeflow 0.5.0.
ADDRESS_VARIABLE = "KUBEFLOW_TRAINER_SERVER_URL"
#: Between two words to Kubeflow. Source: own choice 2026-11; the SDK sends one in 5 s at most, its server takes 5 a second.
_INTERVAL_S = 15.0
#: How long the end of training waits for a word that is on its way. Source: kubeflow 0.5.0 gives up on its server after 5 s.
_JOIN_S = 6.0


@contextmanager
def progress_told(request: TrainRequest, scratch: Path) -> Iterator[None]:
    """Tell Kubeflow inside the block how far training is, if it wants to know."""
    if not os.environ.get(ADDRESS_VARIABLE):
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_tell_until, args=(over, request, scratch), name="kubeflow-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_JOIN_S)


def _tell_until(over: threading.Event, request: TrainRequest, scratch: Path) -> None:
    is_over = over.wait(_INTERVAL_S)  # ranks are forked meanwhile, and nothing imports then
    try:
        from kubeflow.trainer import update_trainjob_status  # slow to import, and needed in TrainJobs only
    except ModuleNotFoundError as error:
        logger.warning("progress_not_told error=%s: install prunella[trainer] where stages run", error)
        return
    while not is_over:
        _tell(update_trainjob_status, request, scratch)
        is_over = over.wait(_INTERVAL_S)
    _tell(update_trainjob_status, request, scratch)


def _tell(update: Callable[..., bool], request: TrainRequest, scratch: Path) -> None:
    last = read_last(scratch)
    if last is not None and not update(**_words(request, last)):
        logger.debug("progress_not_told step=%s", last.step)


def _words(request: TrainRequest, last: StepRecord) -> dict[str, Any]:
    """What Kubeflow is told: of this segment, not of the experiment. The rest is taken to be as fast as the last step."""
    steps, left = request.last_step - request.first_step + 1, request.last_step - last.step
    step_s = (last.end_ns - last.start_ns) / 1e9
    return {
        "progress_percent": 100 * (steps - left) // steps,
        "estimated_remaining_seconds": round(left * step_s),
        "metrics": {"step": last.step, "train/loss": last.loss_nats, "perf/tokens_per_s": round(last.tokens_per_s, 1)},
    }
