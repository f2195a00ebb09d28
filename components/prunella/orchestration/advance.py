"""Which experiments are due: the timed half of scheduling, and the reconciler for runs that died without a close."""

import logging
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from prunella.errors import ConfigError, PrunellaError
from prunella.launch import handle as handles
from prunella.ledger import Ledger, list_experiments, open_ledger
from prunella.orchestration.claim import continuation, last_run, next_segment, run_id_for
from prunella.orchestration.closing import may_continue
from prunella.orchestration.graph import ASK_TIMEOUT_S
from prunella.records import RECORD_OF, Action, AttemptOpened, SegmentOpened, Stage
from prunella.scratch import attempt_scratch, run_scratch
from prunella.storage import open_patiently

logger = logging.getLogger(__name__)

#: A run without a close and without a living process is dead after this long. Source: own choice 2026-11: above Airflow's
#: longest retry of a task whose worker died (heartbeat time-out 20 s here, 300 s by default), which would still re-attach.
DEAD_AFTER_S = 900.0

_RUNG_STAGES = (Stage.GATE_FABRIC, Stage.TRAINING_SEGMENT, Stage.CHECKPOINT_VALIDATION, Stage.EVALUATION)


#: So many runs of a segment may end before they took it up, a minute apart; then a person is waited for. Source: own choice
#: 2026-11: a store that refuses such a run is not refusing by chance, and each of them has raised an alert.
MAX_UNCLAIMED = 5


class RunState(StrEnum):
    """What an orchestrator does with a DAG run that it knows: it has it in hand, or the run is over."""

    IN_HAND = "in_hand"
    OVER = "over"


#: What the orchestrator says of the DAG run of an id; None where it knows of none.
StateOf = Callable[[str], RunState | None]


def known_to_nobody(_run_id: str) -> None:
    """Where no orchestrator can be asked."""
    return


def due_runs(root: str, *, state_of: StateOf = known_to_nobody, now_ns: int | None = None) -> list[dict[str, Any]]:
    """Arguments of one trigger for each experiment that is due: run id and configuration.

    Args:
        state_of: asked of a run that shows no sign of life (its next task may be waiting for slots, for hours), and of the
            one that would be started: it may be on its way, or have ended before it could take the segment up.
    """
    at_ns = time.time_ns() if now_ns is None else now_ns
    store = open_patiently(root)
    return [trigger for name in list_experiments(store) if (trigger := _if_due(root, name, at_ns, state_of)) is not None]


def _if_due(root: str, name: str, now_ns: int, state_of: StateOf) -> dict[str, Any] | None:
    """The trigger of one experiment. One that cannot be read keeps no other from advancing."""
    try:
        ledger = open_ledger(root, name)
        return _trigger(ledger, state_of) if is_due(ledger, now_ns, state_of) else None
    except PrunellaError as error:
        logger.error("experiment_not_advanced experiment=%s error=%s", name, error)
        return None


def _trigger(ledger: Ledger, state_of: StateOf) -> dict[str, Any] | None:
    """The trigger of the next run; None while it is on its way."""
    segment = next_segment(ledger)
    assert segment is not None, "an experiment that is due has a segment to run"
    run_id = free_run_id(ledger, segment, state_of)
    return {"trigger_run_id": run_id, "conf": continuation(ledger)} if run_id is not None else None


def free_run_id(ledger: Ledger, segment: int, state_of: StateOf) -> str | None:
    """The first id of a segment's next run that no run has had; None where one of that id is on its way.

    Raises:
        PrunellaError: `MAX_UNCLAIMED` runs ended before they took the segment up.
    """
    for unclaimed in range(MAX_UNCLAIMED):
        run_id = run_id_for(ledger, segment, unclaimed=unclaimed)
        if (state := state_of(run_id)) is not RunState.OVER:
            return run_id if state is None else None
    raise PrunellaError(
        f"{MAX_UNCLAIMED} runs of segment {segment}, the last of them {run_id}, ended before they took it up; the log of their "
        "prepare_data says why: mend that, then trigger pretrain_segment from its form"
    )


def is_due(ledger: Ledger, now_ns: int, state_of: StateOf = known_to_nobody) -> bool:
    """Whether the experiment's next DAG run should be triggered now."""
    segment = next_segment(ledger)
    if segment is None or ledger.is_stop_requested():
        return False
    last = last_run(ledger, segment)
    if last is None:
        return _is_time(ledger, ledger.experiment().opened_ns, now_ns)
    close = ledger.closed(last.segment, last.run_index)
    if close is None:
        return _is_dead(ledger, last, now_ns) and state_of(last.run_id) is not RunState.IN_HAND
    return may_continue(ledger, close) and _is_time(ledger, last.opened_ns, now_ns)


def _is_time(ledger: Ledger, since_ns: int, now_ns: int) -> bool:
    schedule = ledger.config().schedule
    if schedule == "continuous":
        return True
    return schedule.startswith("cron:") and next_cron_ns(schedule.removeprefix("cron:"), since_ns) <= now_ns


def next_cron_ns(expression: str, after_ns: int) -> int:
    """The first time after `after_ns` that a cron expression names, in UTC.

    Raises:
        ConfigError: it is no cron expression.
    """
    from croniter import CroniterError, croniter

    try:
        return int(croniter(expression, datetime.fromtimestamp(after_ns / 1e9, tz=UTC)).get_next(float) * 1e9)
    except (CroniterError, ValueError) as error:
        raise ConfigError(
            f"schedule cron:{expression}: not a cron expression ({error}); for example cron:*/30 * * * *"
        ) from error


def _is_dead(ledger: Ledger, run: SegmentOpened, now_ns: int) -> bool:
    """Whether a run without a close shows no sign of life: nothing written lately, no process of it on this machine."""
    attempts = [a for a in ledger.attempts(run.segment) if a.run_index == run.run_index]
    signs_ns = [run.opened_ns, *(sign for attempt in attempts for sign in _signs_of_life_ns(ledger, attempt))]
    if now_ns - max(signs_ns) < DEAD_AFTER_S * 1e9:
        return False
    root, name = ledger.store.root, ledger.name
    folders = [attempt_scratch(root, name, run.segment, a.attempt, opened_ns=a.opened_ns) for a in attempts]
    of_run = run_scratch(root, name, run.segment, run.run_index, opened_ns=run.opened_ns)
    return not any(_has_process(folder) for folder in [of_run, *folders])


def _signs_of_life_ns(ledger: Ledger, attempt: AttemptOpened) -> Iterator[int]:
    """When the attempt was known to be attended to: between two of its stages no process of it runs."""
    yield attempt.opened_ns
    yield from (manifest.written_ns for manifest in ledger.candidates(attempt.segment, attempt.attempt))
    for stage in _RUNG_STAGES:
        record = ledger.find_stage_record(RECORD_OF[stage], ledger.record_key(attempt.segment, attempt.attempt, stage))
        if record is not None:
            yield record.ended_ns
    decision = ledger.decision(attempt.segment, attempt.attempt)
    if decision is not None:
        # A person is given this long to answer, and nothing runs meanwhile.
        wait_s = ASK_TIMEOUT_S if decision.action is Action.ASK else 0.0
        yield decision.decided_ns + int(wait_s * 1e9)


def _has_process(folder: Path) -> bool:
    found = (handles.read(path) for path in folder.glob("*.handle"))
    return any(handle is not None and handle.is_alive for handle in found)
