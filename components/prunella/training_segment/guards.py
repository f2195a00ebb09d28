"""What stands between a bad step and the weights.

The gradient of the final hidden state is looked at before any collective mixes ranks, so the rank that computed a NaN is
named, not the one that met it. All ranks judge the same reduced numbers, so all stop together and no optimizer step is taken.
"""

import math

import torch
from torch import Tensor, nn

from prunella.training_segment.failures import NonFiniteStep
from prunella.training_segment.fused_sums import GlobalSums


class GradientGuard:
    """Watches the gradient that enters the last layers from the loss, on this rank alone.

    Args:
        final: the module whose output is the final hidden state.
    """

    def __init__(self, final: nn.Module, device: torch.device) -> None:
        self._device = device
        self._is_poisoned = False
        self.is_non_finite = torch.zeros(1, dtype=torch.bool, device=device)
        final.register_forward_hook(self._attach)

    def begin_step(self, *, is_poisoned: bool) -> None:
        """Forget the step before. `is_poisoned` turns this rank's gradient into NaN: a requested fault, and real."""
        self._is_poisoned = is_poisoned
        self.is_non_finite = torch.zeros(1, dtype=torch.bool, device=self._device)

    def _attach(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(self._inspect)  # type: ignore[no-untyped-call]

    def _inspect(self, gradient: Tensor) -> Tensor:
        if self._is_poisoned:
            gradient = gradient * math.nan
        # One NaN or infinity makes the sum one too; looking at every element takes ten times as long.
        self.is_non_finite |= ~torch.isfinite(gradient.sum())
        return gradient


def require_finite(sums: GlobalSums, grad_norm: float, *, step: int) -> None:
    """Let a step pass whose loss and gradients are finite on every rank.

    Raises:
        NonFiniteStep: on every rank alike.
    """
    if not sums.non_finite and math.isfinite(sums.loss_nats) and math.isfinite(grad_norm):
        return
    seen_by = ", ".join(map(str, sums.non_finite)) or "none alone"
    raise NonFiniteStep(
        f"step {step}: expected a finite loss and gradient, found loss {sums.loss_nats:g} nats, gradient norm {grad_norm:g} "
        f"(seen first by rank: {seen_by}); the optimizer step was not taken and the weights are those of step {step - 1}",
        step=step,
        rank=sums.non_finite[0] if len(sums.non_finite) == 1 else None,
    )
