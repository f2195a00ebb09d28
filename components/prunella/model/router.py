"""Which experts each token goes to, and with what weight.

Always float32, whatever the precision of the rest: a rounded router picks other experts. Selection is deterministic: equal
scores go to the expert with the lower number. The optional bias steers selection only, never the gate values.

Shapes: N tokens, D width of the model, E experts, S slots of a token (its k active experts).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunella.config import ModelConfig, RouterScore

#: Keeps the sum of k sigmoid scores from dividing by zero. Source: own choice 2026-11, far below any live score's spacing.
_SMALLEST_SUM = 1e-20


class RouterOutput(NamedTuple):
    """What one layer's router saw in one micro-batch on this rank (a tuple, so that FSDP's hooks find its tensors).

    Attributes:
        counts_E: int64, token slots each expert got; sums to tokens * k.
        prob_sum_E: float32, sum over tokens of the softmax probabilities; differentiable; sums to tokens.
        z_sum: float32 scalar, sum over tokens of logsumexp(logits)^2; differentiable.
        tokens: tokens of the micro-batch.
    """

    counts_E: Tensor
    prob_sum_E: Tensor
    z_sum: Tensor
    tokens: int


class Assignment(NamedTuple):
    """The experts (int64) and gate values (float32) of each token, best first."""

    experts_NS: Tensor
    gates_NS: Tensor


class Router(nn.Module):
    """A linear map to one logit an expert, then the best k."""

    expert_bias_E: Tensor
    load_fraction_E: Tensor

    def __init__(self, config: ModelConfig, top_k: int) -> None:
        super().__init__()
        self.top_k, self.score = top_k, config.router_score
        self.weight = nn.Parameter(torch.empty(config.n_experts, config.d_model))
        self.register_buffer("load_fraction_E", torch.full((config.n_experts,), 1.0 / config.n_experts))
        if config.router_bias:
            self.register_buffer("expert_bias_E", torch.zeros(config.n_experts))

    @property
    def has_bias(self) -> bool:
        """Whether selection is steered by `expert_bias_E`."""
        return "expert_bias_E" in self._buffers

    def forward(self, x_ND: Tensor) -> tuple[Assignment, RouterOutput]:
        """Route N tokens."""
        logits_NE = functional.linear(x_ND.float(), self.weight.float())
        probs_NE = logits_NE.softmax(dim=-1)
        scores_NE = probs_NE if self.score is RouterScore.SOFTMAX else logits_NE.sigmoid()
        assignment = self._select(scores_NE)
        counts_E = torch.bincount(assignment.experts_NS.flatten(), minlength=logits_NE.shape[1])
        z_sum = logits_NE.logsumexp(dim=-1).square().sum()
        return assignment, RouterOutput(counts_E, probs_NE.sum(dim=0), z_sum, x_ND.shape[0])

    def _select(self, scores_NE: Tensor) -> Assignment:
        """The k best experts. A stable sort, because `topk` promises no order among equals."""
        ranking_NE = scores_NE.detach()
        if self.has_bias:
            ranking_NE = ranking_NE + self.expert_bias_E
        experts_NS = ranking_NE.sort(dim=-1, descending=True, stable=True).indices[:, : self.top_k]
        gates_NS = scores_NE.gather(1, experts_NS)
        if self.top_k > 1:  # at k = 1 a normalised gate is the constant 1 and the router would learn nothing from the loss
            gates_NS = gates_NS / (gates_NS.sum(dim=-1, keepdim=True) + _SMALLEST_SUM)
        return Assignment(experts_NS, gates_NS)

    @torch.no_grad()
    def update(self, counts_E: Tensor, *, tokens: int, bias_rate: float) -> None:
        """Remember the load of the last global batch, and move the bias one step towards balance.

        Args:
            counts_E: int64 token slots of each expert over the whole global batch, all micro-batches, all ranks.
            tokens: tokens of the global batch.
            bias_rate: step of the bias; read only where the bias is on.
        """
        assigned, expected = int(counts_E.sum()), tokens * self.top_k
        assert assigned == expected, f"router counts sum to {assigned}, expected tokens * k = {tokens} * {self.top_k}"
        load_E = counts_E.to(device=self.load_fraction_E.device, dtype=torch.float64)
        self.load_fraction_E.copy_(load_E / expected)
        if self.has_bias:
            self.expert_bias_E.add_(bias_rate * torch.sign(load_E.mean() - load_E))
