"""Writes the ledger of an experiment `demo` record by record, as the stages and the orchestrator would.

Two nodes and a spare, segments of 20 steps, a candidate every 5. Every method writes real records through the real ledger.
"""

from dataclasses import dataclass
from pathlib import Path

from prunella import config_text
from prunella.codec import digest
from prunella.config import CheckpointConfig, Config
from prunella.errors import Cause
from prunella.ledger import Ledger, open_ledger
from prunella.orchestration.claim import SegmentRun
from prunella.records import (
    Action,
    AttemptOpened,
    CheckpointManifest,
    CheckpointRef,
    DataPrepRecord,
    DecisionRecord,
    Diagnosis,
    EvaluationRecord,
    ExperimentRecord,
    FailedRecord,
    Failure,
    FileEntry,
    GateFabricRecord,
    GateFabricRequest,
    GateNodeRecord,
    Health,
    Incident,
    NodeRef,
    Outage,
    Outcome,
    ResumePoint,
    SegmentClosed,
    SegmentOpened,
    Stage,
    StopReason,
    TrainRecord,
    TrainRequest,
    ValidateRequest,
    ValidationRecord,
    Verdict,
    Window,
)

SECOND = 1_000_000_000
OPENED_NS = 1_795_000_000 * SECOND
NODES = (NodeRef(name="node-0"), NodeRef(name="node-1"), NodeRef(name="node-2"))
CONFIG = Config(segments=2, steps_per_segment=20, checkpoint=CheckpointConfig(interval_steps=5))
DIGEST = "d" * 64


@dataclass(frozen=True)
class Story:
    """One experiment under `root`. Segment 0, run 0 and attempt 0 unless said otherwise."""

    root: str
    config: Config = CONFIG
    name: str = "demo"

    def begin(self, faults: tuple[str, ...] = ()) -> "Story":
        Path(self.root).mkdir(parents=True, exist_ok=True)
        record = ExperimentRecord(
            name=self.name,
            opened_ns=OPENED_NS,
            config=config_text.to_mapping(self.config),
            config_digest=digest(self.config),
            faults=faults,
            versions={},
        )
        self.ledger.put(self.ledger.experiment_key, record)
        return self

    @property
    def ledger(self) -> Ledger:
        return open_ledger(self.root, self.name)

    # ---------------------------------------------------------------------------- runs and attempts

    def open_run(self, segment: int = 0, run_index: int = 0, *, is_unattended: bool = False) -> SegmentRun:
        run_id = f"{self.name}__seg-{segment:04d}__r{run_index}"
        self.ledger.open_run(SegmentOpened(segment=segment, run_index=run_index, run_id=run_id, opened_ns=OPENED_NS))
        return SegmentRun(
            root=self.root,
            experiment=self.name,
            segment=segment,
            run_index=run_index,
            run_id=run_id,
            is_unattended=is_unattended,
        )

    def open_attempt(
        self, run: SegmentRun, attempt: int = 0, *, resume: CheckpointRef | None = None, skipped: tuple[Window, ...] = ()
    ) -> AttemptOpened:
        opened = AttemptOpened(
            segment=run.segment,
            attempt=attempt,
            run_index=run.run_index,
            run_id=run.run_id,
            rung=attempt,
            opened_ns=OPENED_NS,
            nodes=NODES,
        )
        self.ledger.open_attempt(opened)
        point = ResumePoint(
            step=resume.step if resume else 0, checkpoint=resume, rejected=(), skipped=skipped, decided_ns=OPENED_NS
        )
        self.ledger.put(self.ledger.resume_key(run.segment, attempt), point)
        return opened

    def close(
        self,
        run: SegmentRun,
        outcome: Outcome,
        *,
        attempt: int | None = None,
        incidents: tuple[Incident, ...] = (),
        checkpoint: CheckpointRef | None = None,
    ) -> SegmentClosed:
        record = SegmentClosed(
            segment=run.segment,
            run_index=run.run_index,
            run_id=run.run_id,
            outcome=outcome,
            message="",
            opened_ns=OPENED_NS,
            closed_ns=OPENED_NS + SECOND,
            attempt=attempt,
            checkpoint=checkpoint,
            incidents=incidents,
        )
        self.ledger.put(self.ledger.close_key(run.segment, run.run_index), record)
        return record

    def accept_segment(self, segment: int) -> SegmentClosed:
        """A run of the segment that was accepted."""
        return self.close(self.open_run(segment), Outcome.ACCEPTED, attempt=0)

    def decide(self, attempt: AttemptOpened, action: Action, *, incidents: tuple[Incident, ...] = (), **more: object) -> None:
        fields = {"row": "a row", "message": "", "started_ns": OPENED_NS, "decided_ns": OPENED_NS, **more}
        record = DecisionRecord(
            segment=attempt.segment,
            attempt=attempt.attempt,
            action=action,
            incidents=incidents,
            **fields,  # type: ignore[arg-type]
        )
        self.ledger.put(self.ledger.decision_key(attempt.segment, attempt.attempt), record)

    # ---------------------------------------------------------------------------- stages

    def prepare_data(self, *, of: SegmentRun | None = None) -> None:
        """The data set; `of` a run, also that run's own answer."""
        record = DataPrepRecord(
            stage=Stage.DATA_PREP,
            verdict=Verdict.ACCEPTED,
            started_ns=OPENED_NS,
            ended_ns=OPENED_NS,
            fingerprint="f" * 64,
            manifest_sha256="0" * 64,
            train_tokens=1_000_000,
            heldout_tokens=20_000,
            documents=1,
            quarantined=0,
        )
        self.ledger.put(self.ledger.dataset_key, record)
        if of is not None:
            self.ledger.put(f"{self.ledger.segment_prefix(of.segment)}/runs/{of.run_index:02d}/data_prep.json", record)

    def gate(
        self, attempt: AttemptOpened, *, bad: str | None = None, silent: str | None = None, doubted: tuple[str, ...] = ()
    ) -> None:
        """Every node's own gate, then the fabric over two of those that passed; of `doubted` ones it could not tell."""
        for node in NODES:
            if node.name == silent:
                continue
            failure = Failure(cause=Cause.NODE_UNHEALTHY, message="wrong products", node=node.name)
            record = GateNodeRecord(
                stage=Stage.GATE_NODE,
                verdict=Verdict.REJECTED if node.name == bad else Verdict.ACCEPTED,
                failure=failure if node.name == bad else None,
                started_ns=OPENED_NS + SECOND,
                ended_ns=OPENED_NS + 2 * SECOND,
                node=node.name,
                health=Health.UNHEALTHY if node.name == bad else Health.HEALTHY,
                checks=(),
            )
            self.put_record(attempt, f"gate_node-{node.name}", record)
        usable = tuple(node for node in NODES if node.name not in (bad, silent, *doubted))
        is_complete = len(usable) >= 2
        self.ask(attempt, Stage.GATE_FABRIC)
        fabric = GateFabricRecord(
            stage=Stage.GATE_FABRIC,
            verdict=Verdict.ACCEPTED if is_complete else Verdict.REJECTED,
            failure=None if is_complete else Failure(cause=Cause.NODE_UNHEALTHY, message="too few nodes"),
            started_ns=OPENED_NS + 2 * SECOND,
            ended_ns=OPENED_NS + 3 * SECOND,
            admitted=usable[:2] if is_complete else (),
            health=dict.fromkeys(doubted, Health.UNKNOWN),
            checks=(),
        )
        self.put_record(attempt, Stage.GATE_FABRIC, fabric)

    def train(
        self,
        attempt: AttemptOpened,
        last_step: int = 20,
        *,
        failure: Failure | None = None,
        stopped_by: StopReason = StopReason.END,
        outages: tuple[Outage, ...] = (),
    ) -> None:
        """Training that reached `last_step`; its candidates are written apart."""
        self.ask(attempt, Stage.TRAINING_SEGMENT)
        record = TrainRecord(
            stage=Stage.TRAINING_SEGMENT,
            verdict=Verdict.REJECTED if failure else Verdict.ACCEPTED,
            failure=failure,
            started_ns=OPENED_NS + 3 * SECOND,
            ended_ns=OPENED_NS + 9 * SECOND,
            stopped_by=StopReason.FAILURE if failure else stopped_by,
            first_step=1,
            last_step=last_step,
            candidates=0,
            world_size=2,
            exits=(),
            outages=outages,
        )
        self.put_record(attempt, Stage.TRAINING_SEGMENT, record)

    def fail(self, attempt: AttemptOpened, stage: Stage, cause: Cause) -> None:
        """A stage that raised, as its shell records it."""
        self.ask(attempt, stage)
        self.put_record(attempt, stage, failed(stage, cause))

    def candidate(self, step: int, *, segment: int = 0, attempt: int = 0, index: int = 0, written_s: int = 4) -> CheckpointRef:
        """A committed checkpoint, `written_s` seconds after the opening. Indices are dense."""
        manifest = CheckpointManifest(
            name=f"{segment:04d}-{attempt:02d}-{index:04d}",
            experiment=self.name,
            segment=segment,
            attempt=attempt,
            step=step,
            world_size=2,
            config_digest=digest(self.config),
            dataset="f" * 64,
            files=(FileEntry(key="weights", sha256="a" * 64, size_bytes=1000),),
            metrics=(),
            probe_loss_nats=5.0,
            torch_version="2.13.0",
            written_ns=OPENED_NS + written_s * SECOND,
        )
        self.ledger.put(self.ledger.manifest_key(manifest.name), manifest)
        return self.ledger.ref(manifest)

    def judge_checkpoint(self, ref: CheckpointRef, *, is_good: bool = True) -> ValidationRecord:
        """The verdict beside the checkpoint."""
        record = validation(ref, is_good=is_good)
        self.ledger.put(self.ledger.verdict_key(ref.name), record)
        return record

    def validate(self, attempt: AttemptOpened, ref: CheckpointRef, *, is_good: bool = True) -> None:
        """The attempt's own validation of its last candidate."""
        self.ask(attempt, Stage.CHECKPOINT_VALIDATION, ref)
        self.put_record(attempt, Stage.CHECKPOINT_VALIDATION, self.judge_checkpoint(ref, is_good=is_good))

    def ask(self, attempt: AttemptOpened, stage: Stage, ref: CheckpointRef | None = None) -> None:
        """The request alone: evidence that the stage was to run. `ref`: the checkpoint it is about, if that matters."""
        ledger = self.ledger
        common = {
            "stage": stage,
            "root": self.root,
            "experiment": self.name,
            "config_digest": digest(self.config),
            "output": ledger.record_key(attempt.segment, attempt.attempt, stage),
        }
        ref = ref or CheckpointRef(name="0000-00-0000", step=1, manifest_sha256=DIGEST)
        requests = {
            Stage.GATE_FABRIC: lambda: GateFabricRequest(wanted=2, **common),
            Stage.TRAINING_SEGMENT: lambda: TrainRequest(
                first_step=1, last_step=20, total_steps=40, dataset="f" * 64, **common
            ),
            Stage.CHECKPOINT_VALIDATION: lambda: ValidateRequest(candidate=ref, dataset="f" * 64, **common),
        }
        ledger.put_request(ledger.request_key(attempt.segment, attempt.attempt, stage), requests[stage]())

    def put_record(self, attempt: AttemptOpened, name: str, record: object) -> None:
        self.ledger.put(self.ledger.record_key(attempt.segment, attempt.attempt, name), record)  # type: ignore[arg-type]


def failed(stage: Stage, cause: Cause) -> FailedRecord:
    return FailedRecord(
        stage=stage,
        verdict=Verdict.REJECTED,
        started_ns=OPENED_NS + 3 * SECOND,
        ended_ns=OPENED_NS + 4 * SECOND,
        failure=Failure(cause=cause, message=f"raised {cause}"),
    )


def validation(ref: CheckpointRef, *, is_good: bool = True) -> ValidationRecord:
    return ValidationRecord(
        stage=Stage.CHECKPOINT_VALIDATION,
        verdict=Verdict.ACCEPTED if is_good else Verdict.REJECTED,
        failure=None if is_good else Failure(cause=Cause.CHECKPOINT_INVALID, message="digest of one file differs"),
        started_ns=OPENED_NS + 10 * SECOND,
        ended_ns=OPENED_NS + 11 * SECOND,
        checkpoint=ref,
        digest=DIGEST,
        checks=(),
    )


def evaluation(ref: CheckpointRef, *, is_regression: bool = False) -> EvaluationRecord:
    return EvaluationRecord(
        stage=Stage.EVALUATION,
        verdict=Verdict.ACCEPTED,
        started_ns=OPENED_NS + 12 * SECOND,
        ended_ns=OPENED_NS + 13 * SECOND,
        checkpoint=ref,
        digest=DIGEST,
        heldout_loss_nats=4.0,
        bits_per_byte=2.0,
        heldout_tokens=8192,
        scores=(),
        is_regression=is_regression,
        regression="the held-out loss rose" if is_regression else "",
    )


def accept_evaluated(story: Story, segment: int, *, step: int, is_regression: bool = False) -> CheckpointRef:
    """A segment that was accepted with a checkpoint at this step, and what its evaluation found."""
    run = story.open_run(segment)
    attempt = story.open_attempt(run)
    checkpoint = story.candidate(step, segment=segment)
    story.judge_checkpoint(checkpoint)
    story.put_record(attempt, Stage.EVALUATION, evaluation(checkpoint, is_regression=is_regression))
    story.close(run, Outcome.ACCEPTED, attempt=0, checkpoint=checkpoint)
    return checkpoint


def incident(cause: Cause, action: Action, *, row: str = "a row", **found: object) -> Incident:
    """An incident; `row` is the decision's own by default, so that it counts as the attempt's failure."""
    return Incident(
        diagnosis=Diagnosis(cause=cause, message="", confidence=0.9, **found),  # type: ignore[arg-type]
        action=action,
        row=row,
        fault_ns=OPENED_NS,
        detected_ns=OPENED_NS,
        decided_ns=OPENED_NS,
    )
