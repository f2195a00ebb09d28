"""The terms of the loss, each in a form that adds up: over micro-batches and ranks into the mean over the global batch.

For each micro-batch the training loop computes

    total = (ce_sum + load_balance_coef * load_balance * tokens_local + router_z_coef * z_sum) / tokens_global

and calls backward. Gradients are summed over micro-batches (autograd) and ranks (`parallelize` sets sum, not mean). Every
term is linear in per-token quantities, given the load fractions, which are constants of the step (the true load of the step
before, over its whole global batch). So the sum is the gradient of the mean over the global batch for any number of
micro-batches and ranks, up to rounding.

Shapes: B sequences, T positions, V vocabulary, E experts.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from prunella.model.router import RouterOutput

if TYPE_CHECKING:
    from prunella.model.transformer import ModelOutput, Transformer


def cross_entropy_sum(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Cross-entropy summed over all positions, nats, float32 scalar."""
    return functional.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction="sum")


def load_balance_loss(fraction_E: Tensor, prob_mean_E: Tensor) -> Tensor:
    """E * sum(f * p): 1 at balance, up to E. Source: Switch Transformer, arXiv 2101.03961, eq. 4; FIELD 5 for its weakness.

    Args:
        fraction_E: part of the token slots each expert got; a constant, sums to 1.
        prob_mean_E: mean gate probability of each expert; differentiable, sums to 1.
    """
    return fraction_E.numel() * (fraction_E * prob_mean_E).sum()


class AuxiliaryLoss(NamedTuple):
    """Router terms of one micro-batch, summed over expert layers; zero in a dense model.

    Attributes:
        load_balance: a mean over the micro-batch's tokens; divide by the number of expert layers to read it (1 is balance).
        z_sum: a sum over the micro-batch's tokens of logsumexp(logits)^2. Source: ST-MoE, arXiv 2202.08906, eq. 5.
    """

    load_balance: Tensor
    z_sum: Tensor


def auxiliary_loss(seen: tuple[RouterOutput, ...], model: "Transformer") -> AuxiliaryLoss:
    """The router terms of a forward pass, against the load fractions that `model` holds from the step before."""
    if not seen:
        zero = torch.zeros((), device=model.rope_cos_TK2.device)
        return AuxiliaryLoss(zero, zero)
    pairs = zip(model.routers(), seen, strict=True)
    balance = [load_balance_loss(router.load_fraction_E, out.prob_sum_E / out.tokens) for router, out in pairs]
    return AuxiliaryLoss(torch.stack(balance).sum(), torch.stack([out.z_sum for out in seen]).sum())


class StepLoss(NamedTuple):
    """The loss of one micro-batch: call backward on `total`; the rest is for the step record (detach before keeping)."""

    total: Tensor
    ce_sum: Tensor
    load_balance: Tensor
    z_sum: Tensor


def step_loss(output: "ModelOutput", targets_BT: Tensor, model: "Transformer", *, tokens_global: int) -> StepLoss:
    """All terms of one micro-batch, weighted as the module's docstring says.

    Args:
        tokens_global: tokens of the whole global batch: all micro-batches, all ranks.
    """
    ce_sum = cross_entropy_sum(output.logits_BTV, targets_BT)
    load_balance, z_sum = auxiliary_loss(output.router, model)
    weighted = model.config.load_balance_coef * load_balance * targets_BT.numel() + model.config.router_z_coef * z_sum
    return StepLoss((ce_sum + weighted) / tokens_global, ce_sum, load_balance, z_sum)
