"""What the environment asks of Airflow's scheduler: slots for work on nodes, a time by which a segment has ended, and a queue.

Read where the DAG file is parsed, because Airflow fixes them there. With nothing set, Airflow's own defaults hold. Where
there is no scheduler (`prunella run`) nobody waits for slots and nobody watches a clock: they are left out.
"""

import os
from datetime import timedelta
from typing import Any

from prunella.errors import ConfigError

#: The Airflow pool with a slot for each node of the fleet. It must exist where POOL_SLOTS is set: Airflow starts no task of
#: a pool that is not there.
NODE_POOL = "prunella_nodes"

POOL_SLOTS = "PRUNELLA_POOL_SLOTS"
DEADLINE_S = "PRUNELLA_SEGMENT_DEADLINE_S"
QUEUE = "PRUNELLA_QUEUE"
SETTINGS = (POOL_SLOTS, DEADLINE_S, QUEUE)


def node_slots() -> int | None:
    """How many slots of the pool work on all nodes takes; None where no pool is used.

    Raises:
        ConfigError: not a whole number from 1.
    """
    text = os.environ.get(POOL_SLOTS)
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{POOL_SLOTS}={text!r}: expected how many nodes the fleet has, a whole number from 1")
    return int(text)


def in_queue() -> dict[str, Any]:
    """Arguments of every task that asks a stage: the queue of Airflow's workers that can find it again."""
    queue = os.environ.get(QUEUE)
    return {"queue": queue} if queue else {}


def on_one_node() -> dict[str, Any]:
    """Arguments of a task that works on one node at a time."""
    return _in_pool(1) if node_slots() else {}


def on_one_idle_node() -> dict[str, Any]:
    """Arguments of a task that works on one node at a time as long as no segment wants it: of all that wait, it goes last.

    A segment's weigh what stands before them in the graph, which is more than 1.
    """
    return {**on_one_node(), "weight_rule": "absolute", "priority_weight": 1} if node_slots() else {}


def on_all_nodes() -> dict[str, Any]:
    """Arguments of a task that works on all nodes together.

    It takes the slots of the whole fleet. Which nodes an experiment trains on is found out by its gates, long after Airflow
    wants the number; and experiments do not know of each other, so that two which fit side by side would choose the same nodes.
    """
    slots = node_slots()
    return _in_pool(slots) if slots else {}


def _in_pool(slots: int) -> dict[str, Any]:
    """Slots, and the rule that whoever is further down the graph goes first: what was gated trains before another gates."""
    return {"pool": NODE_POOL, "pool_slots": slots, "weight_rule": "upstream"}


def segment_deadline() -> Any:
    """Airflow's deadline for a DAG run of a segment, counted from when it was queued; None where none is set.

    Raises:
        ConfigError: not a number of seconds above 0.
    """
    text = os.environ.get(DEADLINE_S)
    if not text:
        return None
    from airflow.sdk.definitions.callback import AsyncCallback
    from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference

    from prunella.orchestration.notifier import LATE, Alert

    return DeadlineAlert(
        # Runs of a segment have no logical date, and the start of a run is no reference that Airflow 3.3 knows.
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=_seconds(text),
        # In the triggerer: in an executor it would wait behind the very tasks that are late.
        callback=AsyncCallback(Alert, {"occasion": LATE}),
        name="segment",
    )


def _seconds(text: str) -> timedelta:
    try:
        interval = timedelta(seconds=float(text))
    except (ValueError, OverflowError):
        interval = timedelta(0)
    if interval <= timedelta(0):
        raise ConfigError(f"{DEADLINE_S}={text!r}: expected seconds above 0, from when a segment's run is queued to its end")
    return interval
