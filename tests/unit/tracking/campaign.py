"""A campaign as its ledger would tell it: two segments of 20 steps, and three faults on the way.

Segment 0: attempt 0 crashes in step 14 (rank 1 killed) and loses 3 steps; attempt 1 resumes at 10, replaces node-1 in its gate,
and its last candidate (step 20) is corrupt; attempt 2 resumes at 15 and is accepted. Segment 1 follows a pause and is clean.
All records are real and go through the real ledger; time is a counter, 1 unit = 1 ms.
"""

import hashlib
from dataclasses import dataclass, field

from prunella import config_text
from prunella.codec import canonical_json, digest
from prunella.config import CheckpointConfig, Config
from prunella.errors import Cause
from prunella.faults import parse
from prunella.ledger import Ledger, open_ledger
from prunella.records import (
    Action,
    AttemptOpened,
    CheckpointManifest,
    CheckpointMark,
    CheckpointRef,
    CheckResult,
    DataPrepRecord,
    DecisionRecord,
    Diagnosis,
    EvaluationRecord,
    ExperimentRecord,
    Failure,
    FaultFired,
    FileEntry,
    GateFabricRecord,
    GateNodeRecord,
    Health,
    Incident,
    NodeRef,
    Outcome,
    Part,
    RankExit,
    ResumePoint,
    SegmentClosed,
    SegmentOpened,
    Span,
    Stage,
    StageLaunched,
    StepRecord,
    StopReason,
    TaskScore,
    TrainRecord,
    ValidationCheck,
    ValidationRecord,
    Verdict,
)
from prunella.storage import create_root

MS = 1_000_000
START_NS = 1_795_000_000_000 * MS
NODES = (NodeRef(name="node-0"), NodeRef(name="node-1"), NodeRef(name="node-2"))
FAULTS = ("kill:rank=1,step=14", "bad-node:node=node-1,segment=0", "corrupt-checkpoint:step=20")
STEP_MS = 100
DIGEST = f"sha256:{'d' * 64}"


def campaign_config(*, schedule: str = "manual") -> Config:
    return Config(segments=2, steps_per_segment=20, schedule=schedule, checkpoint=CheckpointConfig(interval_steps=5))


@dataclass
class Campaign:
    """Writes the ledger of the campaign, stage by stage. `now` is the time in ms since the experiment was opened."""

    ledger: Ledger
    config: Config
    now: int = 0
    candidates: dict[str, CheckpointRef] = field(default_factory=dict)

    @property
    def now_ns(self) -> int:
        return START_NS + self.now * MS

    def pass_ms(self, ms: int) -> tuple[int, int]:
        """Let time pass; returns its start and end in ns."""
        start_ns = self.now_ns
        self.now += ms
        return start_ns, self.now_ns

    # ---------------------------------------------------------------------------- experiment and runs

    def open_experiment(self) -> None:
        record = ExperimentRecord(
            name=self.ledger.name,
            opened_ns=START_NS,
            config=config_text.to_mapping(self.config),
            config_digest=digest(self.config),
            faults=FAULTS,
            versions={"torch": "2.13.0", "prunella": "0.1.0"},
        )
        self.ledger.put(self.ledger.experiment_key, record)

    def prepare_data(self) -> None:
        start_ns, end_ns = self.pass_ms(700)
        record = DataPrepRecord(
            stage=Stage.DATA_PREP,
            verdict=Verdict.ACCEPTED,
            started_ns=start_ns,
            ended_ns=end_ns,
            fingerprint="f" * 64,
            manifest_sha256="0" * 64,
            train_tokens=1_000_000,
            heldout_tokens=20_000,
            documents=1234,
            quarantined=1,
        )
        self.ledger.put(self.ledger.dataset_key, record)

    def open_run(self, segment: int, run_index: int = 0, *, is_carried_on: bool = False) -> str:
        run_id = f"{self.ledger.name}__seg-{segment:04d}__r{run_index}"
        record = SegmentOpened(
            segment=segment, run_index=run_index, run_id=run_id, opened_ns=self.now_ns, is_carried_on=is_carried_on
        )
        self.ledger.open_run(record)
        self.pass_ms(50)
        return run_id

    def close_run(
        self,
        segment: int,
        outcome: Outcome,
        *,
        checkpoint: CheckpointRef | None,
        attempt: int | None,
        incidents: tuple[Incident, ...] = (),
    ) -> None:
        run = self.ledger.runs(segment)[-1]
        self.pass_ms(30)
        record = SegmentClosed(
            segment=segment,
            run_index=run.run_index,
            run_id=run.run_id,
            outcome=outcome,
            message="",
            opened_ns=run.opened_ns,
            closed_ns=self.now_ns,
            attempt=attempt,
            checkpoint=checkpoint,
            is_promoted=checkpoint is not None,
            incidents=incidents,
        )
        self.ledger.put(self.ledger.close_key(segment, run.run_index), record)

    # ---------------------------------------------------------------------------- attempt

    def open_attempt(
        self, segment: int, attempt: int, resume: CheckpointRef | None, rejected: tuple[CheckpointRef, ...] = ()
    ) -> None:
        run = self.ledger.runs(segment)[-1]
        self.pass_ms(20)
        self.ledger.open_attempt(
            AttemptOpened(
                segment=segment,
                attempt=attempt,
                run_index=run.run_index,
                run_id=run.run_id,
                rung=attempt,
                opened_ns=self.now_ns,
                nodes=NODES,
            )
        )
        start_ns, end_ns = self.pass_ms(80)
        point = ResumePoint(
            step=resume.step if resume else 0,
            checkpoint=resume,
            rejected=rejected,
            skipped=(),
            decided_ns=end_ns,
            spans=(Span(part=Part.VALIDATION, start_ns=start_ns, end_ns=end_ns),),
        )
        self.ledger.put(self.ledger.resume_key(segment, attempt), point)

    def gate(self, segment: int, attempt: int, *, bad_node: str | None = None) -> None:
        start_ns, end_ns = self.pass_ms(200)
        for node in NODES:
            is_bad = node.name == bad_node
            check = CheckResult(
                name="matrix_product",
                node=node.name,
                health=Health.UNHEALTHY if is_bad else Health.HEALTHY,
                value=9000.0 if is_bad else 3.0,
                unit="ulp",
                reference="at most 64",
                duration_ms=12.0,
            )
            failure = Failure(cause=Cause.NODE_UNHEALTHY, message="<b>wrong</b> products", node=node.name)
            record = GateNodeRecord(
                stage=Stage.GATE_NODE,
                verdict=Verdict.REJECTED if is_bad else Verdict.ACCEPTED,
                failure=failure if is_bad else None,
                started_ns=start_ns,
                ended_ns=end_ns,
                node=node.name,
                health=check.health,
                checks=(check,),
            )
            output = self.ledger.record_key(segment, attempt, f"gate_node-{node.name}")
            self.ledger.put(
                self.ledger.launched_key(output, 0), StageLaunched(stage=Stage.GATE_NODE, host="here", at_ns=start_ns)
            )
            self.ledger.put(output, record)
        admitted = tuple(node for node in NODES if node.name != bad_node)[:2]
        start_ns, end_ns = self.pass_ms(150)
        fabric = GateFabricRecord(
            stage=Stage.GATE_FABRIC,
            verdict=Verdict.ACCEPTED,
            started_ns=start_ns,
            ended_ns=end_ns,
            admitted=admitted,
            health={node.name: Health.HEALTHY for node in admitted},
            checks=(),
        )
        self.ledger.put(self.ledger.record_key(segment, attempt, "gate_fabric"), fabric)

    def train(
        self,
        segment: int,
        attempt: int,
        first: int,
        last: int,
        *,
        is_killed: bool = False,
        stopped_by: StopReason = StopReason.END,
    ) -> int:
        """Steps `first` to `last`, a candidate every 5; returns when the fault struck, in ns."""
        started_ns = self.now_ns
        loading = Span(part=Part.INITIALISATION, start_ns=started_ns, end_ns=self.pass_ms(300)[1])
        load = Span(part=Part.LOAD, start_ns=self.now_ns, end_ns=self.pass_ms(60)[1])
        warming = Span(part=Part.FIRST_STEP, start_ns=self.now_ns, end_ns=self.pass_ms(40)[1])
        spans, chunk, candidates = [loading, load, warming], [], 0
        for step in range(first, last + 1):
            chunk.append(self._step(step))
            if step % 5 == 0:
                self._commit(segment, attempt, candidates, step, chunk)
                chunk, candidates = [], candidates + 1
        fault_ns = self.now_ns
        if is_killed:
            _, fault_ns = self.pass_ms(45)
            spans.append(Span(part=Part.DETECTION, start_ns=fault_ns, end_ns=self.pass_ms(500)[1]))
            spans.append(Span(part=Part.TEARDOWN, start_ns=self.now_ns, end_ns=self.pass_ms(120)[1]))
        else:
            self.pass_ms(25)
        failure = Failure(cause=Cause.PROCESS_CRASH, message="rank 1 died of signal 9", rank=1, node="node-1")
        record = TrainRecord(
            stage=Stage.TRAINING_SEGMENT,
            verdict=Verdict.REJECTED if is_killed else Verdict.ACCEPTED,
            failure=failure if is_killed else None,
            started_ns=started_ns,
            ended_ns=self.now_ns,
            spans=tuple(spans),
            stopped_by=StopReason.FAILURE if is_killed else stopped_by,
            first_step=first,
            last_step=last,
            candidates=candidates,
            world_size=2,
            exits=(
                RankExit(rank=1, node="node-1", step=last, phase="step", heartbeat_ns=fault_ns, is_recorded=False, signal=9),
            ),
            metrics=(self._put_chunk(segment, attempt, chunk),) if chunk else (),
            fault_ns=fault_ns if is_killed else None,
        )
        self.ledger.put(self.ledger.record_key(segment, attempt, "training_segment"), record)
        return fault_ns

    def _step(self, step: int) -> StepRecord:
        start_ns, end_ns = self.pass_ms(STEP_MS)
        return StepRecord(
            step=step,
            start_ns=start_ns,
            end_ns=end_ns,
            data_ns=2 * MS,
            compute_ns=85 * MS,
            communication_ns=10 * MS,
            checkpoint_ns=3 * MS,
            loss_nats=8.0 / (1.0 + 0.05 * step),
            grad_norm=float("inf") if step == 33 else 1.0 + 1.0 / step,
            learning_rate=3e-3,
            tokens=2048,
            tokens_per_s=20480.0,
            mfu=0.21,
            load_balance_loss=1.02,
            router_z_loss=0.4,
            tokens_per_expert=((500, 524, 512, 512), (400 + step, 624 - step, 512, 512)),
            batch=step - 1,
        )

    def _put_chunk(self, segment: int, attempt: int, records: list[StepRecord]) -> FileEntry:
        data = b"".join(canonical_json(record) + b"\n" for record in records)
        prefix = self.ledger.attempt_prefix(segment, attempt)
        key = f"{prefix}/metrics/{records[0].step:06d}-{records[-1].step:06d}.jsonl"
        self.ledger.store.put_new(key, data)
        return FileEntry(key=key, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))

    def _commit(self, segment: int, attempt: int, index: int, step: int, chunk: list[StepRecord]) -> None:
        manifest = CheckpointManifest(
            name=f"{segment:04d}-{attempt:02d}-{index:04d}",
            experiment=self.ledger.name,
            segment=segment,
            attempt=attempt,
            step=step,
            world_size=2,
            config_digest=digest(self.config),
            dataset="f" * 64,
            files=(FileEntry(key="weights", sha256="a" * 64, size_bytes=1000),),
            metrics=(self._put_chunk(segment, attempt, chunk),),
            probe_loss_nats=5.0,
            torch_version="2.13.0",
            written_ns=self.now_ns,
        )
        self.ledger.put(self.ledger.manifest_key(manifest.name), manifest)
        self.candidates[manifest.name] = self.ledger.ref(manifest)

    def validate(self, name: str, *, is_corrupt: bool = False) -> CheckpointRef:
        ref = self.candidates[name]
        start_ns, end_ns = self.pass_ms(250)
        failure = Failure(cause=Cause.CHECKPOINT_INVALID, message="digest of one file differs")
        record = ValidationRecord(
            stage=Stage.CHECKPOINT_VALIDATION,
            verdict=Verdict.REJECTED if is_corrupt else Verdict.ACCEPTED,
            failure=failure if is_corrupt else None,
            started_ns=start_ns,
            ended_ns=end_ns,
            checkpoint=ref,
            digest=None if is_corrupt else DIGEST,
            checks=(ValidationCheck(name="digests", is_passed=not is_corrupt, value="1 of 1", reference="all"),),
        )
        self.ledger.put(self.ledger.verdict_key(name), record)
        segment, attempt, _ = name.split("-")
        self.ledger.put(self.ledger.record_key(int(segment), int(attempt), f"checkpoint_validation-{name}"), record)
        return ref

    def evaluate(self, segment: int, attempt: int, ref: CheckpointRef, *, acc: float, loss: float) -> None:
        start_ns, end_ns = self.pass_ms(400)
        score = TaskScore(
            task="heldout_choice",
            version="1",
            acc=acc,
            n=100,
            ci95=(acc - 0.09, acc + 0.09),
            chance=0.25,
            few_shot=0,
            batch_size=16,
            seed=7,
            dtype="fp32",
        )
        record = EvaluationRecord(
            stage=Stage.EVALUATION,
            verdict=Verdict.ACCEPTED,
            started_ns=start_ns,
            ended_ns=end_ns,
            checkpoint=ref,
            digest=DIGEST,
            heldout_loss_nats=loss,
            bits_per_byte=loss / 2.0,
            heldout_tokens=8192,
            scores=(score,),
            is_regression=False,
            sample="def <script>alert(1)</script>(self):\n    return self",
        )
        self.ledger.put(self.ledger.record_key(segment, attempt, "evaluation"), record)
        self.ledger.put(
            self.ledger.mark_key(ref.name, "promoted"),
            CheckpointMark(checkpoint=ref.name, reason="accepted", at_ns=self.now_ns),
        )

    def decide(self, segment: int, attempt: int, action: Action, incidents: tuple[Incident, ...] = ()) -> None:
        start_ns, end_ns = self.pass_ms(15)
        record = DecisionRecord(
            segment=segment,
            attempt=attempt,
            action=action,
            row=f"row {action}",
            message="",
            incidents=incidents,
            started_ns=start_ns,
            decided_ns=end_ns,
        )
        self.ledger.put(self.ledger.decision_key(segment, attempt), record)

    def incident(self, cause: Cause, action: Action, *, fault_ns: int, detected_ns: int, lost_steps: int = 0) -> Incident:
        names: dict[Cause, dict[str, object]] = {
            Cause.PROCESS_CRASH: {"node": "node-1", "rank": 1, "step": 14},
            Cause.NODE_UNHEALTHY: {"node": "node-1"},
        }
        return Incident(
            diagnosis=Diagnosis(
                cause=cause,
                message=f"<i>{cause}</i> seen",
                confidence=0.9,
                evidence={"signal": 9},
                **names.get(cause, {}),  # type: ignore[arg-type]
            ),
            action=action,
            row=f"row {action}",
            fault_ns=fault_ns,
            detected_ns=detected_ns,
            decided_ns=self.now_ns + 15 * MS,
            lost_steps=lost_steps,
        )

    def fire(self, spec: str, segment: int, attempt: int) -> None:
        record = FaultFired(spec=spec, at_ns=self.now_ns, segment=segment, attempt=attempt)
        self.ledger.put(f"{self.ledger.prefix}/{parse(spec).key}", record)


def open_campaign(root: str, *, name: str = "moe", schedule: str = "manual") -> Campaign:
    """An experiment that was just opened."""
    create_root(root)
    campaign = Campaign(ledger=open_ledger(root, name), config=campaign_config(schedule=schedule))
    campaign.open_experiment()
    return campaign


def play_crash(campaign: Campaign, *, action: Action = Action.RETRY_SAME_NODES) -> None:
    """Segment 0 until the verdict on its crashed attempt 0: steps 1 to 13 executed, candidates at 5 and 10."""
    campaign.pass_ms(10)
    campaign.open_run(0)
    campaign.prepare_data()
    campaign.open_attempt(0, 0, None)
    campaign.gate(0, 0)
    fault_ns = campaign.train(0, 0, 1, 13, is_killed=True)
    campaign.fire(FAULTS[0], 0, 0)
    crash = campaign.incident(
        Cause.PROCESS_CRASH,
        action,
        fault_ns=fault_ns,
        detected_ns=fault_ns + 500 * MS,
        lost_steps=3,
    )
    campaign.decide(0, 0, action, (crash,))


def play_segment_0(campaign: Campaign) -> None:
    """All of segment 0: crash, bad node, corrupt checkpoint, acceptance."""
    play_crash(campaign)
    resume = campaign.validate("0000-00-0001")
    campaign.open_attempt(0, 1, resume)
    gate_ns = campaign.now_ns
    campaign.fire(FAULTS[1], 0, 1)
    campaign.gate(0, 1, bad_node="node-1")
    bad_node = campaign.incident(Cause.NODE_UNHEALTHY, Action.REPLACE_NODE, fault_ns=gate_ns, detected_ns=gate_ns + 200 * MS)
    campaign.train(0, 1, 11, 20)
    campaign.fire(FAULTS[2], 0, 1)
    written_ns = campaign.now_ns
    campaign.validate("0000-01-0001", is_corrupt=True)
    corrupt = campaign.incident(
        Cause.CHECKPOINT_INVALID, Action.ROLL_BACK, fault_ns=written_ns, detected_ns=campaign.now_ns, lost_steps=5
    )
    campaign.decide(0, 1, Action.ROLL_BACK, (bad_node, corrupt))
    resume = campaign.validate("0000-01-0000")
    campaign.open_attempt(0, 2, resume, rejected=(campaign.candidates["0000-01-0001"],))
    campaign.gate(0, 2)
    campaign.train(0, 2, 16, 20)
    accept(campaign, 0, 2, "0000-02-0000", acc=0.41, loss=4.2)


def play_segment_1(campaign: Campaign, *, is_carried_on: bool = False, loss: float = 3.6) -> None:
    """A clean segment, 5 s after the one before."""
    previous = campaign.candidates["0000-02-0000"]
    campaign.pass_ms(5000)
    campaign.open_run(1, is_carried_on=is_carried_on)
    campaign.open_attempt(1, 0, previous)
    campaign.gate(1, 0)
    campaign.train(1, 0, 21, 40)
    accept(campaign, 1, 0, "0001-00-0003", acc=0.55, loss=loss)


def accept(campaign: Campaign, segment: int, attempt: int, name: str, *, acc: float, loss: float) -> None:
    """Validate, decide, evaluate, close."""
    ref = campaign.validate(name)
    campaign.decide(segment, attempt, Action.ACCEPT)
    campaign.evaluate(segment, attempt, ref, acc=acc, loss=loss)
    campaign.close_run(segment, Outcome.ACCEPTED, checkpoint=ref, attempt=attempt)


def play(root: str, *, name: str = "moe", schedule: str = "manual") -> Campaign:
    """The whole campaign."""
    campaign = open_campaign(root, name=name, schedule=schedule)
    play_segment_0(campaign)
    play_segment_1(campaign)
    return campaign
