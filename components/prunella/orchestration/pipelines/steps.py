"""What each component of the pipelines does: one step of `orchestration`, without a word of Kubeflow.

A component names its pipeline run, by root, experiment and id, and its rung; it gets what the next ones need and what
people look at. A step whose predecessor was not accepted is not reached: it says so, does nothing, and answers with an empty
string. Nobody can be asked inside a pipeline, so every run is unattended.
"""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from prunella.errors import ConfigError, PrunellaError
from prunella.fleet.roster import load_fleet
from prunella.launch.kubernetes.placement import exclusion
from prunella.ledger import Ledger
from prunella.orchestration import closing, judging, leaving, opening, stages
from prunella.orchestration.claim import SegmentRun, claim, find_claim, read_claim
from prunella.orchestration.graph import branch_of
from prunella.orchestration.publishing import publish_apart, report_path
from prunella.orchestration.stages import NotReached
from prunella.orchestration.submit import Submission, open_experiment
from prunella.records import (
    Action,
    EvaluationRecord,
    GateFabricRecord,
    Outcome,
    TrainRecord,
    ValidationRecord,
)
from prunella.tracking.history import read_chunk

logger = logging.getLogger(__name__)

#: The answer of a step that was not reached.
NOT_REACHED = ""


class SegmentFailed(PrunellaError):
    """The segment closed without being accepted. Its record says why."""


class Artifact(Protocol):
    """What people see of a thing: some facts, and a file."""

    metadata: dict[str, Any]

    @property
    def path(self) -> str:
        """The file's place on this machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepAnswer:
    """What a step hands to the next ones (`answer`), and what it shows people.

    `uri` is where the thing lies that an artifact stands for.
    """

    answer: str = NOT_REACHED
    uri: str = ""
    metadata: dict[str, str | int | float] = field(default_factory=dict)
    text: str = ""

    def describe(self, artifact: Artifact) -> None:
        """Let an artifact say what it stands for, and where in the ledger that lies.

        Its own address stays what the orchestrator gave it: Kubeflow uploads what lies there, and fails a task whose artifact
        lies outside the pipeline's root.
        """
        if not self.uri:
            return
        document = {"ledger_uri": self.uri, **self.metadata}
        artifact.metadata.update(document)
        Path(artifact.path).write_text(json.dumps(document, indent=1))


def run_of(root: str, experiment: str, run_id: str) -> SegmentRun:
    """The segment that a pipeline run took up. From here on SIGTERM is an interrupt: the stage under way saves and ends.

    Raises:
        ConfigError: it took up none; `prepare_data` says why.
    """
    leaving.listen()
    run = find_claim(root, experiment, run_id, is_unattended=True)
    if run is None:
        raise ConfigError(f"pipeline run {run_id} opened no segment of {experiment!r}; the log of prepare_data says why")
    return run


def prepare_data(submission: Submission, run_id: str) -> StepAnswer:
    """Open the experiment if it is new, claim its next segment, have its data set made or verified; answers the claim.

    Raises:
        ConfigError: the submission cannot be meant, or the experiment is complete.
        StepFailed: there is no data set to train on.
    """
    leaving.listen()
    ledger = open_experiment(submission)
    key = claim(ledger, run_id)
    opening.prepare_data(read_claim(submission.root, key, is_unattended=True))
    record = opening.dataset(ledger)
    metadata: dict[str, str | int | float] = {
        "fingerprint": record.fingerprint,
        "train_tokens": record.train_tokens,
        "heldout_tokens": record.heldout_tokens,
        "documents": record.documents,
    }
    return StepAnswer(answer=key, uri=_uri(ledger, f"datasets/{record.fingerprint}"), metadata=metadata)


def open_segment(run: SegmentRun) -> None:
    """Check the predecessor; stop and settle what an earlier run left behind. Raises StepFailed."""
    opening.open_segment(run)


def open_attempt(run: SegmentRun, rung: int) -> list[str]:
    """Take the token and find the resume point; answers the keys of one gate request a node."""
    return list(opening.open_attempt(run, rung))


def gate_node(run: SegmentRun, request: str) -> str:
    """Gate one node; answers the key of its record."""
    return _reached(lambda: stages.gate_node(run, request, _forget))


def gate_fabric(run: SegmentRun, rung: int) -> dict[str, object]:
    """Gate the links between the survivors; answers the node affinity that keeps training off the rest of the fleet: nodes that
    did not pass, and cordoned ones, which were not even asked."""
    key = _reached(lambda: stages.gate_fabric(run, rung, _forget))
    ledger = run.ledger()
    record = ledger.find_stage_record(GateFabricRecord, key) if key else None
    admitted = {node.name for node in record.admitted} if isinstance(record, GateFabricRecord) else set()
    config = ledger.config()
    return exclusion({node.name for node in load_fleet(config.fleet, nodes=config.nodes)} - admitted)


def train_segment(run: SegmentRun, rung: int) -> StepAnswer:
    """Train what is left of the segment; answers the key of its record."""
    key = _reached(lambda: stages.train_segment(run, rung, _forget))
    ledger = run.ledger()
    record = ledger.find_stage_record(TrainRecord, key) if key else None
    if not isinstance(record, TrainRecord):
        return StepAnswer(answer=key)
    metadata: dict[str, str | int | float] = {
        "first_step": record.first_step,
        "last_step": record.last_step,
        "world_size": record.world_size,
        "candidates": record.candidates,
    }
    return StepAnswer(answer=key, metadata=metadata | _last_loss(ledger, run, rung))


def _last_loss(ledger: Ledger, run: SegmentRun, rung: int) -> dict[str, str | int | float]:
    attempt = run.attempt(ledger, rung)
    chunks = [entry for m in ledger.candidates(run.segment, attempt.attempt) for entry in m.metrics] if attempt else []
    last = read_chunk(ledger, chunks[-1])[-1].loss_nats if chunks else math.nan
    return {"loss_nats": last} if math.isfinite(last) else {}


def validate_checkpoint(run: SegmentRun, rung: int) -> StepAnswer:
    """Have the attempt's last candidate judged; answers the key of the record, and the checkpoint it is about."""
    key = _reached(lambda: stages.validate_checkpoint(run, rung, _forget))
    ledger = run.ledger()
    record = ledger.find_stage_record(ValidationRecord, key) if key else None
    if not isinstance(record, ValidationRecord):
        return StepAnswer(answer=key)
    name = record.checkpoint.name
    return StepAnswer(
        answer=key,
        uri=_uri(ledger, ledger.checkpoint_prefix(name)),
        metadata={
            "checkpoint": name,
            "step": record.checkpoint.step,
            "verdict": record.verdict.value,
            "digest": record.digest or "",
            "manifest_sha256": record.checkpoint.manifest_sha256,
        },
    )


def verdict(run: SegmentRun, rung: int) -> StepAnswer:
    """Write the attempt's one decision; answers the branch it takes, and says why."""
    action = judging.verdict(run, rung)
    if action is None:
        return StepAnswer(answer=Action.STOP.value, text=f"Attempt {rung} of this pipeline run was not opened.")
    branch = branch_of(action, rung).rpartition(".")[2]
    return StepAnswer(answer=branch, text=_decision(run, rung))


def _decision(run: SegmentRun, rung: int) -> str:
    """The decision as Markdown: what, by which row of the policy, and every incident with its evidence."""
    ledger = run.ledger()
    attempt = run.attempt(ledger, rung)
    decision = ledger.decision(run.segment, attempt.attempt) if attempt is not None else None
    if decision is None:
        return ""
    lines = [f"## {decision.action}", f"Row `{decision.row}`: {decision.message}", ""]
    for incident in decision.incidents:
        found = incident.diagnosis
        lines.append(f"- **{found.cause}** on {found.node or 'no node'}: {found.message} ({incident.lost_steps} steps lost)")
    return "\n".join(lines) + "\n"


def evaluate(run: SegmentRun) -> StepAnswer:
    """Have the accepted checkpoint evaluated; answers the key of the record."""
    key = _reached(lambda: closing.evaluate(run, _forget))
    record = run.ledger().find_stage_record(EvaluationRecord, key) if key else None
    if not isinstance(record, EvaluationRecord):
        return StepAnswer(answer=key)
    found = {"heldout_loss_nats": record.heldout_loss_nats, "bits_per_byte": record.bits_per_byte}
    found |= {f"{score.task}_acc": score.acc for score in record.scores}
    return StepAnswer(answer=key, metadata={name: value for name, value in found.items() if math.isfinite(value)})


def promote(run: SegmentRun) -> str:
    """Promote the checkpoint unless its evaluation shows a regression; answers its name."""
    return _reached(lambda: closing.promote(run))


def close_segment(run: SegmentRun, error: str) -> str:
    """Judge what a run that broke off has left unjudged, write the segment's outcome and publish; returns the report's HTML.

    Args:
        error: what the pipeline failed of; empty where it did not fail.

    Raises:
        SegmentFailed: the segment was not accepted.
    """
    ledger = run.ledger()
    attempt = run.last_attempt(ledger)
    is_early = bool(error) and attempt is None
    if attempt is not None and ledger.decision(run.segment, attempt.attempt) is None:
        judging.judge(ledger, run, attempt)
    close = closing.close_segment(run, failed=opening.failure_of(run, error) if is_early else None, message=error)
    publish_apart(ledger, is_awaited=True)
    if close.outcome is Outcome.FAILED:
        raise SegmentFailed(f"segment {close.segment}: {close.message}")
    path = report_path(ledger)
    return path.read_text() if path.exists() else ""


# ------------------------------------------------------------------------------------------------ shared


def _uri(ledger: Ledger, key: str) -> str:
    return f"{ledger.store.root}/{key}"


def _reached(work: Callable[[], str]) -> str:
    """The step's answer, or NOT_REACHED where the one before it was not accepted."""
    try:
        return work()
    except NotReached as skipped:
        logger.warning("step_not_reached reason=%s", skipped)
        return NOT_REACHED


def _forget(handle: object) -> None:
    """A pipeline has no place to keep the handle of a stage's process; its scratch has it."""
