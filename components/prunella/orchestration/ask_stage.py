"""Asking a stage: write its request, start or re-attach to its process, wait, read its record. Absence is an answer.

Training is started once and never again for the same attempt. The other stages change nothing but their own record, so a
process of theirs that vanished is started again within the attempt, and its vanishing is recorded. That a stage is started is
recorded before it is: a second try that finds no handle, on another machine or after scratch was lost, starts nothing.
"""

import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prunella.data_prep.sources import places
from prunella.errors import Cause, ConfigError, KeyExists, StorageFull, StorageUnavailable
from prunella.launch import door
from prunella.launch.handle import Handle
from prunella.ledger import Ledger
from prunella.records import RECORD_OF, FailedRecord, Failure, Request, Stage, StageLaunched, StageRecord, Verdict

logger = logging.getLogger(__name__)
stage_output = logging.getLogger("prunella.stage")

#: How long `Watch` passes nothing on after it did. Source: own choice 2026-11: a look at the ledger costs milliseconds.
PASS_ON_S = 2.0


class Unlaunchable(ConfigError):
    """No stage like this can be started as PRUNELLA_LAUNCH says; nothing was sent anywhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """How a stage is asked.

    Args:
        scratch: folder for the handle and the log of its process.
        relaunches: how often a process that vanished is started again.
        timeout_s: after this long the process is stopped, and counts as vanished.
        on_poll: called while waiting, at most every few seconds, with the process.
        on_start: told the process once it is known, to keep it in a crash-safe place.
    """

    scratch: Path
    node: str | None = None
    relaunches: int = 0
    timeout_s: float | None = None
    on_poll: Callable[[Handle], None] = lambda handle: None
    on_start: Callable[[Handle], None] = lambda handle: None


def ask(ledger: Ledger, key: str, request: Request, asking: Asking) -> StageRecord | None:
    """What the stage answered; None when it vanished, however often it was started."""
    ledger.put_request(key, request)
    for index in range(asking.relaunches + 1):
        if (record := _answer(ledger, request)) is not None:
            return record
        if _vanished_before(ledger, request, index):
            continue
        _run(ledger, key, request, asking, index)
        if (record := _answer(ledger, request)) is not None:
            return record
        _record_vanishing(ledger, request, index)
    return None


def _answer(ledger: Ledger, request: Request) -> StageRecord | None:
    return ledger.find_stage_record(RECORD_OF[request.stage], request.output)


def _run(ledger: Ledger, key: str, request: Request, asking: Asking, index: int) -> None:
    if door.launcher() == door.KUBERNETES:
        from prunella.orchestration.cluster_stages import run_on_cluster  # brings Airflow's Kubernetes provider

        run_on_cluster(ledger, key, request, asking, index)
        return
    name = Path(key).stem
    launch = door.Launch(
        stage=request.stage,
        root=ledger.store.root,
        request_key=key,
        handle=asking.scratch / f"{name}-{index}.handle",
        log=asking.scratch / f"{name}.log",
        node=asking.node,
        reads=places(ledger.config().data) if request.stage is Stage.DATA_PREP else (),
    )
    if not _may_start(ledger, request, index) and not door.was_started_here(launch):
        logger.error("stage_out_of_reach stage=%s handle=%s", request.stage, launch.handle)
        return
    handle = door.start_or_attach(launch)
    if handle is None:
        logger.error("stage_died_at_start stage=%s log=%s", request.stage, launch.log)
        return
    asking.on_start(handle)
    door.wait(handle, log=launch.log, on_poll=Watch(handle, asking), on_line=stage_output.info)


def _may_start(ledger: Ledger, request: Request, index: int) -> bool:
    """Whether nobody has begun this start of the stage; from now on, somebody has."""
    record = StageLaunched(stage=request.stage, host=platform.node(), at_ns=time.time_ns())
    try:
        ledger.put(ledger.launched_key(request.output, index), record)
    except KeyExists:
        return False
    return True


class Watch:
    """Called on every poll: enforces the time limit, and passes on to the asker, every PASS_ON_S seconds at most."""

    def __init__(self, handle: Handle, asking: Asking) -> None:
        self._handle = handle
        self._asking = asking
        self._started = self._last = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        limit = self._asking.timeout_s
        if limit is not None and now - self._started > limit:
            logger.error("stage_timed_out handle=%s limit_s=%s", self._handle, limit)
            door.stop(self._handle, grace_s=0.0)
        if now - self._last > PASS_ON_S:
            self._last = now
            self._asking.on_poll(self._handle)


def _vanished_before(ledger: Ledger, request: Request, index: int) -> bool:
    return ledger.store.exists(ledger.vanished_key(request.output, index))


def _record_vanishing(ledger: Ledger, request: Request, index: int) -> None:
    now_ns = time.time_ns()
    failure = Failure(cause=Cause.VANISHED, message=f"{request.stage} ended without a record (start {index})")
    record = FailedRecord(stage=request.stage, verdict=Verdict.UNKNOWN, started_ns=now_ns, ended_ns=now_ns, failure=failure)
    try:
        ledger.put(ledger.vanished_key(request.output, index), record)
    except KeyExists:
        logger.info("vanishing_known output=%s index=%s", request.output, index)
    except (StorageUnavailable, StorageFull) as error:
        logger.warning("vanishing_not_recorded output=%s error=%s", request.output, error)
