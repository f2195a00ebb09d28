"""What goes into a step and what comes out of it, for catalogues that speak OpenLineage: data set, segment, checkpoints.

Read from the ledger after the step has ended. Airflow's OpenLineage provider asks for it where it is installed and has a
transport; elsewhere nobody asks, and nothing of OpenLineage is imported. What it cannot read, the provider logs and leaves
out: lineage never fails a step.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from prunella.data.manifest import dataset_prefix
from prunella.ledger import Ledger
from prunella.orchestration.claim import SegmentRun
from prunella.records import (
    CheckpointRef,
    DataPrepRecord,
    FailedRecord,
    Stage,
    TrainRecord,
    ValidateRequest,
    ValidationRecord,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """Something in the ledger that has a life of its own: its folder, and the sha256 of its manifest as its version."""

    prefix: str
    version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """Of one step. `facts` say of the segment what was done."""

    inputs: tuple[Artifact, ...] = ()
    outputs: tuple[Artifact, ...] = ()
    facts: dict[str, str | int] = field(default_factory=dict)


def of_data_prep(run: SegmentRun) -> Lineage:
    """The data set comes out."""
    ledger = run.ledger()
    return Lineage(outputs=tuple(_dataset(ledger)), facts=_facts(run))


def of_training(run: SegmentRun, rung: int) -> Lineage:
    """Data set and the checkpoint it resumed from go in, the attempt's candidates come out."""
    ledger = run.ledger()
    attempt = run.attempt(ledger, rung)
    if attempt is None:
        return Lineage()
    point = ledger.resume_point(run.segment, attempt.attempt)
    record = ledger.find_stage_record(TrainRecord, ledger.record_key(run.segment, attempt.attempt, Stage.TRAINING_SEGMENT))
    resumed = [point.checkpoint] if point is not None and point.checkpoint is not None else []
    candidates = [ledger.ref(manifest) for manifest in ledger.candidates(run.segment, attempt.attempt)]
    steps = {"first_step": record.first_step, "last_step": record.last_step} if isinstance(record, TrainRecord) else {}
    return Lineage(
        inputs=(*_dataset(ledger), *_checkpoints(ledger, resumed)),
        outputs=_checkpoints(ledger, candidates),
        facts=_facts(run) | {"attempt": attempt.attempt} | steps | _verdict(record),
    )


def of_validation(run: SegmentRun, rung: int) -> Lineage:
    """A checkpoint goes in; what comes out is a verdict."""
    ledger = run.ledger()
    attempt = run.attempt(ledger, rung)
    if attempt is None:
        return Lineage()
    name = Stage.CHECKPOINT_VALIDATION.value
    request = ledger.find(ValidateRequest, ledger.request_key(run.segment, attempt.attempt, name))
    record = ledger.find_stage_record(ValidationRecord, ledger.record_key(run.segment, attempt.attempt, name))
    return Lineage(
        inputs=_checkpoints(ledger, [request.candidate] if request is not None else []),
        facts=_facts(run) | {"attempt": attempt.attempt} | _verdict(record),
    )


def _facts(run: SegmentRun) -> dict[str, str | int]:
    return {"experiment": run.experiment, "segment": run.segment, "run_index": run.run_index}


def _verdict(record: TrainRecord | ValidationRecord | FailedRecord | None) -> dict[str, str | int]:
    """No record is a fact too: the step left none."""
    return {"verdict": record.verdict.value if record is not None else "no record"}


def _dataset(ledger: Ledger) -> Iterable[Artifact]:
    record = ledger.find_stage_record(DataPrepRecord, ledger.dataset_key)
    if isinstance(record, DataPrepRecord):
        yield Artifact(prefix=dataset_prefix(record.fingerprint), version=record.manifest_sha256)


def _checkpoints(ledger: Ledger, refs: Iterable[CheckpointRef]) -> tuple[Artifact, ...]:
    return tuple(Artifact(prefix=ledger.checkpoint_prefix(ref.name), version=ref.manifest_sha256) for ref in refs)


# ------------------------------------------------------------------------------------------------ OpenLineage's words


def in_openlineage(root: str, lineage: Lineage) -> Any:
    """The provider's own structure; None where the provider is not installed."""
    try:
        from airflow.providers.openlineage.extractors import OperatorLineage
    except ImportError:
        return None
    return OperatorLineage(
        inputs=[_named(root, artifact, is_output=False) for artifact in lineage.inputs],
        outputs=[_named(root, artifact, is_output=True) for artifact in lineage.outputs],
        run_facets={"prunella_segment": _segment_facet(lineage.facts)} if lineage.facts else {},
    )


def _named(root: str, artifact: Artifact, *, is_output: bool) -> Any:
    from openlineage.client.event_v2 import InputDataset, OutputDataset
    from openlineage.client.facet_v2 import dataset_version_dataset

    namespace, name = place(root, artifact.prefix)
    facets = {"version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=artifact.version)}
    kind = OutputDataset if is_output else InputDataset
    return kind(namespace=namespace, name=name, facets=facets)


def place(root: str, prefix: str) -> tuple[str, str]:
    """Namespace and name of a folder under the root, by OpenLineage's naming of buckets and of local files."""
    if not root.startswith("s3://"):
        return "file", f"{root.rstrip('/')}/{prefix}"
    bucket, _, folder = root.removeprefix("s3://").partition("/")
    return f"s3://{bucket}", f"{folder.rstrip('/')}/{prefix}".lstrip("/")


def _segment_facet(facts: dict[str, str | int]) -> Any:
    """A facet of our own, made here because its base is not there without the provider."""
    import attrs
    from openlineage.client.facet_v2 import RunFacet

    kind = attrs.make_class("PrunellaSegmentRunFacet", {name: attrs.field() for name in facts}, bases=(RunFacet,), kw_only=True)
    return kind(**facts)
