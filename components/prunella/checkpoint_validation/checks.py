"""What a candidate must satisfy once its tensors are read: pure judgements, each with its value and its reference in words."""

import math

import torch
from torch import Tensor

from prunella.records import CheckpointRef, ValidationCheck, ValidationRecord


def check_finite(tensors: dict[str, Tensor]) -> ValidationCheck:
    """No NaN and no infinity anywhere, moments included."""
    bad = [name for name, tensor in sorted(tensors.items()) if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    value = f"{len(bad)} of {len(tensors)} tensors, first {bad[0]}" if bad else f"0 of {len(tensors)} tensors"
    return ValidationCheck(name="finite", is_passed=not bad, value=value, reference="0 tensors with a NaN or an infinity")


def norm(tensors: list[Tensor]) -> float:
    """L2 norm over all elements, summed in float64."""
    return math.sqrt(sum(float(tensor.to(torch.float64).square().sum()) for tensor in tensors))


def check_norm(found: float, previous: float | None, *, max_ratio: float) -> ValidationCheck:
    """The parameters have about the size that they had at the verified checkpoint before."""
    if previous is None:
        is_passed, reference = math.isfinite(found) and found > 0.0, "finite and positive (no verified checkpoint before it)"
    else:
        is_passed = previous / max_ratio <= found <= previous * max_ratio
        reference = f"within a factor {max_ratio:g} of {previous:.6g}, the norm of the verified checkpoint before it"
    return ValidationCheck(name="parameter_norm", is_passed=is_passed, value=f"{found:.6g}", reference=reference)


def check_differs(candidate: CheckpointRef, digest: str, previous: ValidationRecord | None) -> ValidationCheck:
    """A later step has other weights (FIELD 6, R2: a writer that saves its first weights for ever)."""
    if previous is None or previous.checkpoint.step == candidate.step:
        reference = "does not apply: no verified checkpoint of an earlier step"
        return ValidationCheck(name="differs", is_passed=True, value=digest, reference=reference)
    reference = f"another than {previous.parameter_digest} of step {previous.checkpoint.step}"
    is_passed = digest != previous.parameter_digest
    return ValidationCheck(name="differs", is_passed=is_passed, value=digest, reference=reference)


def check_probe_loss(found_nats: float, recorded_nats: float, *, rtol: float) -> ValidationCheck:
    """The weights compute what they computed when they were saved."""
    is_passed = math.isfinite(found_nats) and abs(found_nats - recorded_nats) <= rtol * abs(recorded_nats)
    reference = f"{recorded_nats:.9g} nats at the save, within a relative {rtol:g}"
    return ValidationCheck(name="probe_loss", is_passed=is_passed, value=f"{found_nats:.9g} nats", reference=reference)
