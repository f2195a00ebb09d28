"""What is happening now, in one line, folded from the ledger and the live scratch of the running attempt."""

import json
from dataclasses import dataclass
from typing import Any

from prunella.ledger import Ledger
from prunella.orchestration.claim import next_segment
from prunella.records import AttemptOpened, Incident, Stage
from prunella.scratch import attempt_scratch

_STAGES = (Stage.GATE_FABRIC, Stage.TRAINING_SEGMENT, Stage.CHECKPOINT_VALIDATION, Stage.EVALUATION)
_WORDS = {
    Stage.GATE_FABRIC: "gating the links between nodes",
    Stage.TRAINING_SEGMENT: "training",
    Stage.CHECKPOINT_VALIDATION: "validating the checkpoint",
    Stage.EVALUATION: "evaluating the checkpoint",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where an experiment is. `step` and `loss_nats` are those of the running attempt, None before its first step."""

    segment: int | None
    attempt: int | None
    activity: str
    step: int | None = None
    total_steps: int = 0
    loss_nats: float | None = None
    tokens_per_s: float | None = None

    def line(self) -> str:
        """For a terminal."""
        if self.segment is None:
            return self.activity
        where = f"segment {self.segment}" + (f", attempt {self.attempt}" if self.attempt is not None else "")
        live = f" step {self.step}/{self.total_steps}" if self.step is not None else ""
        loss = f" loss {self.loss_nats:.3f} nats" if self.loss_nats is not None else ""
        speed = f" {self.tokens_per_s:,.0f} tokens/s" if self.tokens_per_s is not None else ""
        return f"{where}: {self.activity}{live}{loss}{speed}"


def progress(ledger: Ledger) -> Progress:
    """Where the experiment is now."""
    segment = next_segment(ledger)
    if segment is None:
        return Progress(segment=None, attempt=None, activity="complete")
    attempts = ledger.attempts(segment)
    if not attempts:
        activity = "preparing data" if ledger.runs(segment) else "waiting for its DAG run"
        return Progress(segment=segment, attempt=None, activity=activity)
    attempt = attempts[-1].attempt
    decision = ledger.decision(segment, attempt)
    if decision is not None and decision.action != "accept":
        return Progress(segment=segment, attempt=attempt, activity=f"decided {decision.action}")
    stage = _running_stage(ledger, segment, attempt)
    live: dict[str, Any] = _live(ledger, attempts[-1]) if stage is Stage.TRAINING_SEGMENT else {}
    return Progress(
        segment=segment,
        attempt=attempt,
        activity=_WORDS[stage] if stage else "gating nodes",
        step=live.get("step"),
        total_steps=ledger.config().total_steps,
        loss_nats=live.get("loss_nats"),
        tokens_per_s=live.get("tokens_per_s"),
    )


def _running_stage(ledger: Ledger, segment: int, attempt: int) -> Stage | None:
    """The last stage that was asked."""
    asked = [stage for stage in _STAGES if ledger.store.exists(ledger.request_key(segment, attempt, stage))]
    return asked[-1] if asked else None


def _live(ledger: Ledger, attempt: AttemptOpened) -> dict[str, Any]:
    root, number = ledger.store.root, attempt.attempt
    scratch = attempt_scratch(root, ledger.name, attempt.segment, number, opened_ns=attempt.opened_ns)
    path = scratch / "progress.json"
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def incidents(ledger: Ledger) -> list[tuple[int, int, Incident]]:
    """(segment, attempt, incident) of everything that went wrong so far, oldest first."""
    found = []
    for segment in range(ledger.config().segments):
        for attempt in ledger.attempts(segment):
            decision = ledger.decision(segment, attempt.attempt)
            found += [(segment, attempt.attempt, incident) for incident in (decision.incidents if decision else ())]
    return found
