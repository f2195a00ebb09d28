"""The process a stage runs in: one request in, one record out.

It registers itself in the attempt's scratch so that a later try finds it, proves the request and the configuration by
their digests, runs the stage, and writes the record with `put_new`. It exits 0 whenever it wrote a record, whatever that
says. Nothing is written by a fenced process, by a pod that lends its processes to another, or by a process that ends itself
because its stage takes longer than it may.
"""

import dataclasses
import faulthandler
import importlib
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from prunella import codec, node_pods
from prunella.config import Config
from prunella.errors import Cause, ConfigError, Fenced, KeyExists, PrunellaError, StorageFull
from prunella.launch.handle import register
from prunella.ledger import Ledger, open_ledger
from prunella.records import (
    DataPrepRequest,
    EvaluateRequest,
    FailedRecord,
    Failure,
    GateFabricRequest,
    GateNodeRequest,
    Part,
    Request,
    Span,
    Stage,
    StageRecord,
    TrainRequest,
    ValidateRequest,
    Verdict,
)
from prunella.startup import heavy_imports
from prunella.storage import open_patiently

logger = logging.getLogger(__name__)

#: stage -> (module with `run`, kind of its request). Modules are imported when they run: most bring torch.
STAGES: dict[Stage, tuple[str, type[Request]]] = {
    Stage.DATA_PREP: ("prunella.data_prep.stage", DataPrepRequest),
    Stage.GATE_NODE: ("prunella.health_gate.node_stage", GateNodeRequest),
    Stage.GATE_FABRIC: ("prunella.health_gate.fabric_stage", GateFabricRequest),
    Stage.TRAINING_SEGMENT: ("prunella.training_segment.stage", TrainRequest),
    Stage.CHECKPOINT_VALIDATION: ("prunella.checkpoint_validation.stage", ValidateRequest),
    Stage.EVALUATION: ("prunella.evaluation.stage", EvaluateRequest),
}

EXIT_RECORDED = 0
EXIT_FENCED = 3
EXIT_NOT_FIRST = 4
EXIT_HOST_LOST = 5
EXIT_TOO_LONG = 1  # also what the interpreter's watchdog ends with
_STDERR = 2
#: How long a thread of ours may wait for the interpreter's lock before the stage counts as holding it for good, in seconds.
#: Imports hold it for up to a second on a busy machine. Chosen on 2026-11-22.
_LOCK_GRACE_S = 10.0


def run_stage(stage: Stage, *, root: str, key: str, handle: Path | None = None) -> int:
    """Run one stage to its record; returns the process's exit code.

    Args:
        handle: file to register this process in; when another process of the same launch holds it, nothing is run.
    """
    if handle is not None and not register(handle):
        logger.warning("stage_not_started reason=another_process_holds_it handle=%s", handle)
        return EXIT_NOT_FIRST
    _end_on_sigterm()
    started_ns = time.time_ns()
    ledger, request, config = load_request(stage, root, key)
    if node_pods.is_guest():  # in a TrainJob every pod runs this command: the first runs the stage
        return EXIT_RECORDED if node_pods.lend(config, request) else EXIT_HOST_LOST
    logger.info("stage_started stage=%s request=%s", stage, key)
    with ended_after(time_limit_s(stage, config)):
        return _run_to_record(stage, ledger, request, config, started_ns)


def _run_to_record(stage: Stage, ledger: Ledger, request: Any, config: Config, started_ns: int) -> int:
    """Run the stage and write what came of it; returns the exit code."""
    try:
        with heavy_imports():
            module = importlib.import_module(STAGES[stage][0])
        record = module.run(config, request)
    except Fenced as error:
        logger.warning("stage_fenced stage=%s error=%s", stage, error)
        return EXIT_FENCED
    except (Exception, MemoryError) as error:  # noqa: BLE001 - the one place where a stage's own failure becomes its record
        record = _failed(stage, error, started_ns)
    _write(ledger, request.output, _with_start_up(record))
    logger.info("stage_recorded stage=%s verdict=%s output=%s", stage, record.verdict, request.output)
    return EXIT_RECORDED


def time_limit_s(stage: Stage, config: Config) -> float | None:
    """How long a stage may take before it ends itself, in seconds; None for no limit."""
    return config.gate.node_timeout_s if stage is Stage.GATE_NODE else None


@contextmanager
def ended_after(limit_s: float | None) -> Iterator[None]:
    """End this process where the block takes longer than `limit_s` seconds: exit code 1, and in its log where it stood.

    Whoever started it may watch the same limit and come first: either way there is no record. No signal is used: the first
    process of a container has no default action. A thread that holds the interpreter's lock ends it, so that nothing moves
    while it writes down where everything stands; where a hanging driver gives the lock to nobody, nothing moves either, and
    the interpreter's own watchdog, which needs no lock, comes `_LOCK_GRACE_S` later.
    """
    if limit_s is None:
        yield
        return
    watchdog = threading.Timer(limit_s, _end_here, [limit_s])
    watchdog.daemon = True
    faulthandler.dump_traceback_later(limit_s + _LOCK_GRACE_S, exit=True, file=_STDERR)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()
        faulthandler.cancel_dump_traceback_later()


def _end_here(limit_s: float) -> None:
    """End this process and say where each of its threads stands."""
    os.write(_STDERR, f"stage_ended_itself limit_s={limit_s:g}\n".encode())
    faulthandler.dump_traceback(file=_STDERR)
    os._exit(EXIT_TOO_LONG)


def _end_on_sigterm() -> None:
    """Let SIGTERM end this process where the kernel would not: the first process of a container has no default action. A
    stage that saves first sets a handler of its own."""
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))


def load_request(stage: Stage, root: str, key: str) -> tuple[Ledger, Any, Config]:
    """The request at `key`, proven to be of the configuration that its experiment has now, with both.

    Raises:
        ConfigError: there is no such request, or the experiment was extended since it was written.
    """
    module_request = STAGES[stage][1]
    name = _experiment_of(key)
    if name is None:
        fleet = Ledger(open_patiently(root), "fleet")
        request = fleet.find(module_request, key)
        return fleet, _proven(request, key, Config(), config_digest=None), Config()
    ledger = open_ledger(root, name)
    config = ledger.config()
    request = ledger.find(module_request, key)
    return ledger, _proven(request, key, config, config_digest=codec.digest(config)), config


#: The part of elapsed time that starting a stage's process belongs to: the interpreter, the imports, the request.
_START_UP: dict[Stage, Part] = {
    Stage.DATA_PREP: Part.DATA_PREPARATION,
    Stage.GATE_NODE: Part.GATE,
    Stage.GATE_FABRIC: Part.GATE,
    Stage.TRAINING_SEGMENT: Part.INITIALISATION,
    Stage.CHECKPOINT_VALIDATION: Part.VALIDATION,
    Stage.EVALUATION: Part.EVALUATION,
}


def _with_start_up(record: StageRecord) -> StageRecord:
    """The record with the time its process needed before the stage began."""
    start_ns = int(psutil.Process().create_time() * 1e9)
    if start_ns >= record.started_ns:
        return record
    span = Span(part=_START_UP[record.stage], start_ns=start_ns, end_ns=record.started_ns)
    return dataclasses.replace(record, spans=(span, *record.spans))


def _experiment_of(key: str) -> str | None:
    """The experiment a request belongs to; None for a request of the fleet itself."""
    parts = key.split("/")
    return parts[1] if parts[0] == "experiments" and len(parts) > 2 else None


def _proven(request: Request | None, key: str, config: Config, *, config_digest: str | None) -> Request:
    if request is None:
        raise ConfigError(f"--request {key}: there is no such request under this root")
    if config_digest is not None and request.config_digest != config_digest:
        raise ConfigError(
            f"--request {key}: made for the configuration {request.config_digest[:12]}, but the experiment now has "
            f"{config_digest[:12]}; it was extended meanwhile: open a new attempt"
        )
    return request


def _failed(stage: Stage, error: BaseException, started_ns: int) -> FailedRecord:
    cause = error.cause if isinstance(error, PrunellaError) else _cause_of_foreign(error)
    logger.error("stage_failed stage=%s cause=%s error=%s", stage, cause, error, exc_info=cause is Cause.UNKNOWN)
    evidence = {"traceback": "".join(traceback.format_exception(error))[-4000:]} if cause is Cause.UNKNOWN else {}
    if isinstance(error, StorageFull):
        evidence = {"error": type(error).__name__}  # the same cause as an outage, but a person must make room
    failure = Failure(cause=cause, message=f"{error}" or type(error).__name__, evidence=dict(evidence))
    return FailedRecord(stage=stage, verdict=Verdict.REJECTED, started_ns=started_ns, ended_ns=time.time_ns(), failure=failure)


def _cause_of_foreign(error: BaseException) -> Cause:
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return Cause.OUT_OF_MEMORY if is_memory else Cause.UNKNOWN


def _write(ledger: Ledger, key: str, record: StageRecord) -> None:
    try:
        ledger.put(key, record)
    except KeyExists:
        logger.warning("stage_record_dropped reason=already_recorded output=%s", key)
