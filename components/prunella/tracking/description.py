"""The words that go to MLflow: params, tags, the note, the table of incidents. Pure, and the same for the same ledger.

Values that come from outside (messages, names) are cut to what MLflow's stores accept; nothing here is interpreted.
"""

import json
from collections.abc import Sequence
from typing import Any

from prunella import config_text
from prunella.checkpoint_history import best_evaluated
from prunella.records import Action, TrainRecord
from prunella.tracking.history import Attempt, Checkpoint, History
from prunella.tracking.incidents import IncidentStory
from prunella.tracking.summary import Summary, summary

#: Params of the healing loop carry this group's name in the tracking server (ECOSYSTEM 5).
_GROUP_NAMES = {"policy": "heal"}
#: Longest tag or param that is sent, in characters. Source: MLflow 3.17 `utils/validation.py` cuts params there, 2026-11.
_LONGEST = 6000


def config_params(history: History) -> dict[str, str]:
    """The configuration the experiment was opened with, flat and dotted. What directives changed later is a tag."""
    config = config_text.from_mapping(history.experiment.config, "experiment.json")
    return _flat(config_text.to_mapping(config))


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in table.items():
        name = f"{prefix}{key if prefix else _GROUP_NAMES.get(key, key)}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: _text(value)}
    return flat


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:_LONGEST]


def experiment_tags(history: History) -> dict[str, str]:
    """Tags of the parent run: what it ran on and with, and which steps of its series are there twice."""
    record = history.experiment
    tags = {f"prunella.version.{name}": version for name, version in record.versions.items()}
    tags["prunella.config_digest"] = record.config_digest
    tags["prunella.segments"] = str(history.config.segments)
    tags["prunella.faults"] = " ".join(record.faults)
    dag_runs = [run.run_id for run, _ in history.runs]
    tags["prunella.airflow_dag_runs"] = _text(" ".join(dag_runs))
    tags["prunella.repeated_steps"] = _first_to_last(repeated_steps(history))
    return tags


def repeated_steps(history: History) -> list[int]:
    """Steps of earlier segments that a later one executed again: the end checkpoint of an accepted segment was revoked."""
    length = history.config.steps_per_segment
    return [step.record.step for step in history.steps if step.is_kept and step.record.step <= step.segment * length]


def _first_to_last(steps: Sequence[int]) -> str:
    return f"{min(steps)}-{max(steps)}" if steps else "none"


def attempt_tags(attempt: Attempt, told: Sequence[IncidentStory]) -> dict[str, str]:
    """Tags of a child run: nodes, resume point, what was superseded, and its incidents among those told."""
    opened = attempt.opened
    tags = {
        "prunella.airflow_dag_run": opened.run_id,
        "prunella.nodes": " ".join(node.name for node in opened.nodes),
        "prunella.superseded_steps": _first_to_last([step.record.step for step in attempt.steps if not step.is_kept]),
    }
    if attempt.resume is not None:
        tags["prunella.resume_step"] = str(attempt.resume.step)
    if isinstance(attempt.training, TrainRecord):
        tags["prunella.world_size"] = str(attempt.training.world_size)
        tags["prunella.stopped_by"] = attempt.training.stopped_by.value
    if attempt.decision is not None:
        tags["heal.decision"] = attempt.decision.action.value
        tags["heal.row"] = attempt.decision.row
    mine = [story for story in told if (story.segment, story.attempt) == (opened.segment, opened.attempt)]
    return tags | _incident_tags(mine)


def _incident_tags(mine: list[IncidentStory]) -> dict[str, str]:
    if not mine:
        return {}
    return {
        "heal.incidents": str(len(mine)),
        "heal.causes": " ".join(story.incident.diagnosis.cause.value for story in mine),
        "heal.culprits": "; ".join(story.culprit or "unknown" for story in mine),
        "heal.evidence": _text("; ".join(story.incident.diagnosis.message for story in mine)),
    }


def attempt_status(history: History, attempt: Attempt) -> tuple[str, int | None]:
    """MLflow's status of a child run and its end in ns: RUNNING only while it holds the token of an open DAG run."""
    decision = attempt.decision
    if decision is not None:
        return ("FINISHED" if decision.action is Action.ACCEPT else "FAILED"), decision.decided_ns
    later = [other.opened.opened_ns for other in history.attempts if other.opened.opened_ns > attempt.opened.opened_ns]
    later += [run.opened_ns for run, _ in history.runs if run.opened_ns > attempt.opened.opened_ns]
    closes = [close for _, close in history.runs if close is not None and close.run_id == attempt.opened.run_id]
    ends = later + [close.closed_ns for close in closes]
    return ("KILLED", min(ends)) if ends else ("RUNNING", None)


#: State of the experiment -> status of the parent run.
STATUS = {"complete": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "running": "RUNNING"}


def checkpoint_params(checkpoint: Checkpoint) -> dict[str, str]:
    """What identifies a checkpoint: enough to find it in the ledger and to prove that it is the one."""
    manifest = checkpoint.manifest
    digest = getattr(checkpoint.validation, "digest", None)
    return {
        "checkpoint": manifest.name,
        "step": str(manifest.step),
        "segment": str(manifest.segment),
        "attempt": str(manifest.attempt),
        "digest": digest or "unknown",
        "dataset": manifest.dataset,
        "size_bytes": str(sum(entry.size_bytes for entry in manifest.files)),
    }


def checkpoint_tags(checkpoint: Checkpoint) -> dict[str, str]:
    """What became of a checkpoint since it was verified; none where it may be resumed from."""
    marks = {"prunella.revoked": checkpoint.revoked, "prunella.pruned": checkpoint.pruned}
    return {tag: _text(mark.reason) for tag, mark in marks.items() if mark is not None}


def best_checkpoint(history: History) -> str | None:
    """The verified checkpoint with the lowest held-out loss whose files are there: retention keeps them."""
    at_hand = {checkpoint.manifest.name for checkpoint in history.checkpoints if checkpoint.is_at_hand}
    return best_evaluated(history.evaluations, among=at_hand)


def last_verified_checkpoint(history: History) -> str | None:
    """The checkpoint that was verified last, of those whose files are there."""
    verified = [
        (checkpoint.validation.ended_ns, checkpoint.manifest.step, checkpoint.manifest.name)
        for checkpoint in history.checkpoints
        if checkpoint.is_at_hand and checkpoint.validation is not None
    ]
    return max(verified)[2] if verified else None


#: Columns of incidents.json, in order.
INCIDENT_COLUMNS = (
    "segment",
    "attempt",
    "after_step",
    "cause",
    "culprit",
    "confidence",
    "message",
    "evidence",
    "decision",
    "row",
    "lost_steps",
    "recovery_s",
    "recovery_phases_s",
)


def incident_table(told: Sequence[IncidentStory]) -> dict[str, Any]:
    """The table of incidents in the form that `log_table` writes (pandas, orient split)."""
    return {"columns": list(INCIDENT_COLUMNS), "data": [_incident_row(story) for story in told]}


def _incident_row(story: IncidentStory) -> list[Any]:
    diagnosis = story.incident.diagnosis
    return [
        story.segment,
        story.attempt,
        story.after_step,
        diagnosis.cause.value,
        story.culprit,
        diagnosis.confidence,
        diagnosis.message,
        json.dumps(diagnosis.evidence, sort_keys=True),
        story.incident.action.value,
        story.incident.row,
        story.incident.lost_steps,
        sum(story.recovery_s.values()) if story.recovery_s else None,
        json.dumps({phase: round(seconds, 3) for phase, seconds in story.recovery_s.items()}),
    ]


def note(history: History) -> str:
    """A readable summary, as of the last close, in Markdown."""
    closes = [close.closed_ns for _, close in history.runs if close is not None]
    if not closes:
        return f"**{history.experiment.name}** is running; its first segment has not closed yet."
    found = summary(history.until(max(closes)), mlflow_run_id=None, now_ns=max(closes))
    lines = [_headline(history, found), "", "| cause | culprit | decision | lost steps | recovery |", "|---|---|---|---|---|"]
    for incident in found.incidents:
        recovery = f"{sum(incident.recovery_s.values()):.1f} s" if incident.recovery_s else "none"
        culprit = incident.culprit or "unknown"
        lines.append(f"| {incident.cause} | {culprit} | {incident.decision} | {incident.lost_steps} | {recovery} |")
    return "\n".join(lines if found.incidents else lines[:1])


def _headline(history: History, found: Summary) -> str:
    loss = "no step kept" if found.final_loss_nats is None else f"loss {found.final_loss_nats:.4f} nats"
    return (
        f"**{history.experiment.name}**: {found.state}, {found.segments} of {history.config.segments} segments, "
        f"{found.steps} steps, {loss}, ETTR {found.ettr:.1%}, {len(found.incidents)} incidents, "
        f"{found.checkpoints.verified} checkpoints verified and {found.checkpoints.rejected} rejected."
    )
