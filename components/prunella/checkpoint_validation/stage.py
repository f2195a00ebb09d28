"""Checkpoint validation: is this candidate fit to be resumed from, evaluated and promoted?

Runs in a fresh single process that shares nothing with the one that saved. Trusts the reference, which pins the manifest,
and the verdicts of earlier validations; believes nothing else before it is proven. A candidate that fails is rejected by
a record and keeps all its evidence; only the world around it (store, held-out data, configuration) makes this stage raise.
The first verdict on a checkpoint stands: a second validation returns it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from prunella.checkpoint_probe import probe_batch, probe_loss
from prunella.checkpoint_reader import check_same, read_manifest, read_state, read_tensors, verify_file
from prunella.checkpoint_state import MODEL, OPTIM, logical_digest, model_tensors, parameter_digest
from prunella.checkpoint_validation.checks import check_differs, check_finite, check_norm, check_probe_loss, norm
from prunella.checkpoint_validation.layout import is_same_at
from prunella.config import Config, Precision
from prunella.data.manifest import load_manifest, manifest_key
from prunella.errors import Cause, CheckpointInvalid, ConfigError, KeyExists, KeyMissing
from prunella.ledger import Ledger, open_ledger
from prunella.model.transformer import Transformer
from prunella.records import (
    CheckpointManifest,
    Failure,
    Part,
    Span,
    Stage,
    ValidateRequest,
    ValidationCheck,
    ValidationRecord,
    Verdict,
)

T = TypeVar("T")


@dataclass(kw_only=True, slots=True)
class Examination:
    """What has been found out about one candidate so far."""

    checks: list[ValidationCheck] = field(default_factory=list)
    digest: str | None = None
    parameter_digest: str | None = None
    parameter_norm: float | None = None
    probe_loss_nats: float | None = None

    def prove(self, name: str, reference: str, work: Callable[[], T]) -> T:
        """Do `work`, which raises CheckpointInvalid unless the check is passed; what comes after needs its result."""
        try:
            result = work()
        except CheckpointInvalid as error:
            self.checks.append(ValidationCheck(name=name, is_passed=False, value=str(error), reference=reference))
            raise
        self.checks.append(ValidationCheck(name=name, is_passed=True, value="yes", reference=reference))
        return result


def run(config: Config, request: ValidateRequest) -> ValidationRecord:
    """Judge `request.candidate`, and write the verdict beside it.

    Raises:
        StorageUnavailable, DataCorrupt, ConfigError: nothing can be said about the candidate.
    """
    ledger = open_ledger(request.root, request.experiment, settings=config.storage)
    earlier = ledger.validation(request.candidate.name)
    if earlier is not None:
        return earlier
    started_ns = time.time_ns()
    examination = examine(ledger, config, request)
    return _commit(ledger, _record(request, examination, started_ns))


def examine(ledger: Ledger, config: Config, request: ValidateRequest) -> Examination:
    """Every check, cheapest first, until one fails without whose result the next cannot be done."""
    previous = _previous(ledger, request)
    examination = Examination()
    try:
        manifest = _prove_bytes(examination, ledger, request)
        tensors = _prove_content(examination, ledger, config, manifest)
    except CheckpointInvalid:
        return examination
    weights = model_tensors(tensors)
    model = Transformer(config.model)
    examination.parameter_norm = norm([weights[name] for name, _ in model.named_parameters()])
    examination.parameter_digest = parameter_digest(tensors)
    before = None if previous is None else previous.parameter_norm
    examination.checks += [
        check_finite(tensors),
        check_norm(examination.parameter_norm, before, max_ratio=config.checkpoint.max_norm_ratio),
        check_differs(request.candidate, examination.parameter_digest, previous),
    ]
    model.load_state_dict(weights)
    examination.probe_loss_nats = probe_loss(model, _probe(ledger, config, request))
    examination.checks.append(check_probe_loss(examination.probe_loss_nats, manifest.probe_loss_nats, rtol=_probe_rtol(config)))
    return examination


def _prove_bytes(examination: Examination, ledger: Ledger, request: ValidateRequest) -> CheckpointManifest:
    ref = request.candidate
    manifest = examination.prove("manifest", f"manifest of {ref.name} with its sha256", lambda: read_manifest(ledger, ref))
    examination.prove("complete", "every file there, with its size", lambda: _check_sizes(ledger, manifest))
    examination.prove("digests", "every file has its sha256", lambda: _check_digests(ledger, manifest))
    return manifest


def _prove_content(examination: Examination, ledger: Ledger, config: Config, manifest: CheckpointManifest) -> dict[str, Tensor]:
    state = examination.prove("loader_state", "of this step, data set and seed", lambda: read_state(ledger, manifest))
    tensors = examination.prove("readable", "every tensor whole", lambda: read_tensors(ledger, manifest))
    examination.digest = logical_digest(tensors, state)
    other = 2 if manifest.world_size == 1 else 1
    layouts = f"saved by {manifest.world_size} ranks, the same bits when read by {other}"
    examination.prove("world_size", layouts, lambda: _check_layout(ledger, manifest, tensors, other))
    examination.prove("configuration", "the tensors of this model", lambda: _check_names(config, manifest, tensors))
    return tensors


def _check_sizes(ledger: Ledger, manifest: CheckpointManifest) -> None:
    for entry in manifest.files:
        try:
            found = ledger.store.size_bytes(entry.key)
        except KeyMissing as error:
            raise CheckpointInvalid(f"{manifest.name} lacks 1 of {len(manifest.files)} files: {entry.key}") from error
        if found != entry.size_bytes:
            raise CheckpointInvalid(f"{entry.key}: expected {entry.size_bytes} bytes, found {found}")


def _check_digests(ledger: Ledger, manifest: CheckpointManifest) -> None:
    for entry in manifest.files:
        verify_file(ledger, manifest, entry)


def _check_layout(ledger: Ledger, manifest: CheckpointManifest, tensors: dict[str, Tensor], world_size: int) -> None:
    if world_size > 1 and not is_same_at(ledger, manifest, tensors, world_size):
        raise CheckpointInvalid(f"{manifest.name} read by {world_size} ranks differs from what one process reads")


def _check_names(config: Config, manifest: CheckpointManifest, tensors: dict[str, Tensor]) -> None:
    """The model's tensors exactly, and AdamW's state for each parameter."""
    model = Transformer(config.model)
    expected = {f"{MODEL}{name}": (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        expected |= {f"{OPTIM}{name}.{moment}": (parameter.shape, parameter.dtype) for moment in ("exp_avg", "exp_avg_sq")}
        expected[f"{OPTIM}{name}.step"] = (parameter.new_empty(1).shape, parameter.dtype)
    check_same(expected, {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}, manifest.name)


def _previous(ledger: Ledger, request: ValidateRequest) -> ValidationRecord | None:
    if request.previous is None:
        return None
    verdict = ledger.validation(request.previous.name)
    if verdict is None or verdict.verdict is not Verdict.ACCEPTED:
        raise ConfigError(f"validate_request.previous: checkpoint {request.previous.name} is not a verified one")
    return verdict


def _probe(ledger: Ledger, config: Config, request: ValidateRequest) -> Tensor:
    sha256 = request.inputs.get(manifest_key(request.dataset))
    return probe_batch(ledger.store, load_manifest(ledger.store, request.dataset, sha256), config)


def _probe_rtol(config: Config) -> float:
    is_bf16 = config.optim.precision is Precision.BF16
    return config.checkpoint.probe_loss_rtol_bf16 if is_bf16 else config.checkpoint.probe_loss_rtol


# ------------------------------------------------------------------------------------------------ the verdict


def _record(request: ValidateRequest, examination: Examination, started_ns: int) -> ValidationRecord:
    failed = [check for check in examination.checks if not check.is_passed]
    ended_ns = time.time_ns()
    return ValidationRecord(
        stage=Stage.CHECKPOINT_VALIDATION,
        verdict=Verdict.REJECTED if failed else Verdict.ACCEPTED,
        started_ns=started_ns,
        ended_ns=ended_ns,
        failure=_failure(request, failed) if failed else None,
        spans=(Span(part=Part.VALIDATION, start_ns=started_ns, end_ns=ended_ns),),
        checkpoint=request.candidate,
        digest=examination.digest,
        checks=tuple(examination.checks),
        parameter_digest=examination.parameter_digest,
        parameter_norm=examination.parameter_norm,
        probe_loss_nats=examination.probe_loss_nats,
    )


def _failure(request: ValidateRequest, failed: list[ValidationCheck]) -> Failure:
    first = failed[0]
    message = f"checkpoint {request.candidate.name} is rejected: {first.name}: expected {first.reference}, found {first.value}"
    evidence = {check.name: check.value for check in failed}
    return Failure(cause=Cause.CHECKPOINT_INVALID, message=message, step=request.candidate.step, evidence={**evidence})


def _commit(ledger: Ledger, record: ValidationRecord) -> ValidationRecord:
    """Write the verdict; where another validation was quicker, its verdict stands."""
    key = ledger.verdict_key(record.checkpoint.name)
    try:
        ledger.put(key, record)
    except KeyExists:
        earlier = ledger.find(ValidationRecord, key)
        assert earlier is not None, f"{key} exists and is gone"
        return earlier
    return record
