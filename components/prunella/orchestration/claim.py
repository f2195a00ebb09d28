"""Which DAG run works on which segment. A claim is a SegmentOpened record; its key is all that tasks pass to each other."""

import logging
import time
from dataclasses import dataclass
from typing import Any

from prunella import codec
from prunella.errors import Cause, ConfigError, KeyExists
from prunella.ledger import Ledger, open_ledger
from prunella.records import AttemptOpened, SegmentOpened, Stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentRun:
    """One DAG run of one segment. `is_unattended`: nobody can answer a question."""

    root: str
    experiment: str
    segment: int
    run_index: int
    run_id: str
    is_unattended: bool

    def ledger(self) -> Ledger:
        """The experiment's ledger."""
        return open_ledger(self.root, self.experiment)

    def attempt(self, ledger: Ledger, rung: int) -> AttemptOpened | None:
        """The attempt this run opened on a rung; None when it did not."""
        attempts = ledger.attempts(self.segment)
        return next((a for a in attempts if a.run_index == self.run_index and a.rung == rung), None)

    def last_attempt(self, ledger: Ledger) -> AttemptOpened | None:
        """The newest attempt of this run; None when it opened none."""
        attempts = [a for a in ledger.attempts(self.segment) if a.run_index == self.run_index]
        return attempts[-1] if attempts else None


def addressed(run: SegmentRun, ledger: Ledger, attempt: AttemptOpened, stage: Stage, name: str) -> dict[str, Any]:
    """The fields that every request on behalf of an attempt has in common. `name` is the record's, under the attempt."""
    return {
        "stage": stage,
        "root": run.root,
        "experiment": run.experiment,
        "config_digest": codec.digest(ledger.config()),
        "output": ledger.record_key(run.segment, attempt.attempt, name),
        "segment": run.segment,
        "attempt": attempt.attempt,
        "run_index": run.run_index,
        "opened_ns": attempt.opened_ns,
    }


def next_segment(ledger: Ledger) -> int | None:
    """The first segment without an accepted close; None when the experiment is complete."""
    pending = (segment for segment in range(ledger.config().segments) if ledger.accepted(segment) is None)
    return next(pending, None)


def last_run(ledger: Ledger, segment: int) -> SegmentOpened | None:
    """The run that has the say in what comes next: the newest of a segment, or of the one before it where it has none; None
    when neither has. One that was fenced has none; whoever took its token has, and may be the older of the two."""
    runs = ledger.runs(segment) or (ledger.runs(segment - 1) if segment else [])
    standing = [run for run in runs if not is_fenced(ledger, run.segment, run.run_index)]
    newest = (standing or runs)[-1:]
    return newest[0] if newest else None


def is_fenced(ledger: Ledger, segment: int, run_index: int) -> bool:
    """Whether a run ended because another took over. That is no failure of the experiment: nobody needs to be paged."""
    attempts = [attempt for attempt in ledger.attempts(segment) if attempt.run_index == run_index]
    decision = ledger.decision(segment, attempts[-1].attempt) if attempts else None
    return decision is not None and any(incident.diagnosis.cause is Cause.FENCED for incident in decision.incidents)


def run_id_for(ledger: Ledger, segment: int, *, unclaimed: int = 0) -> str:
    """The deterministic id of the next DAG run of a segment: whoever comes second finds it there.

    Args:
        unclaimed: runs of the id that ended before they took anything up; the orchestrator knows them, the ledger does not.
    """
    name = f"{ledger.name}__seg-{segment:04d}__r{len(ledger.runs(segment))}"
    return f"{name}-{unclaimed}" if unclaimed else name


def continuation(ledger: Ledger) -> dict[str, Any]:
    """The configuration of a DAG run that goes on with an experiment, which it must therefore find."""
    return {"root": ledger.store.root, "experiment": ledger.name, "continues": True}


def claim(ledger: Ledger, run_id: str, *, is_carried_on: bool = False) -> str:
    """Take up the next segment for `run_id`; a second try finds its claim. Returns the claim's key.

    Args:
        is_carried_on: the command that ran the one before goes on by itself: nobody was waited for.

    Raises:
        ConfigError: the experiment is complete.
    """
    while (mine := _taken_up(ledger, run_id)) is None:
        segment = next_segment(ledger)
        if segment is None:
            raise ConfigError(f"experiment {ledger.name!r} is complete; `prunella extend` adds segments")
        run_index = len(ledger.runs(segment))
        opened = SegmentOpened(
            segment=segment, run_index=run_index, run_id=run_id, opened_ns=time.time_ns(), is_carried_on=is_carried_on
        )
        try:
            ledger.open_run(opened)
        except KeyExists:
            logger.info("claim_raced experiment=%s segment=%s", ledger.name, segment)
    return claim_key(ledger, mine.segment, mine.run_index)


def _taken_up(ledger: Ledger, run_id: str) -> SegmentOpened | None:
    """What a run of this id took up, newest segment first; None when it took up nothing."""
    pending = next_segment(ledger)
    newest = ledger.config().segments - 1 if pending is None else pending
    runs = (run for segment in range(newest, -1, -1) for run in ledger.runs(segment))
    return next((run for run in runs if run.run_id == run_id), None)


def claim_key(ledger: Ledger, segment: int, run_index: int) -> str:
    """Key of a claim."""
    return f"{ledger.segment_prefix(segment)}/runs/{run_index:02d}.json"


def read_claim(root: str, key: str, *, is_unattended: bool) -> SegmentRun:
    """The run behind a claim's key.

    Raises:
        ConfigError: there is no such claim under the root.
    """
    experiment = key.split("/")[1]
    record = open_ledger(root, experiment).find(SegmentOpened, key)
    if record is None:
        raise ConfigError(f"{root}: no segment run was opened at {key!r}; trigger the DAG again")
    return SegmentRun(
        root=root,
        experiment=experiment,
        segment=record.segment,
        run_index=record.run_index,
        run_id=record.run_id,
        is_unattended=is_unattended,
    )


def find_claim(root: str, experiment: str, run_id: str, *, is_unattended: bool) -> SegmentRun | None:
    """What a run of this id took up; None when it took up nothing."""
    ledger = open_ledger(root, experiment)
    if not ledger.store.exists(ledger.experiment_key):
        return None
    mine = _taken_up(ledger, run_id)
    if mine is None:
        return None
    return read_claim(root, claim_key(ledger, mine.segment, mine.run_index), is_unattended=is_unattended)
