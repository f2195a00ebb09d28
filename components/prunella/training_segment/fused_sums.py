"""The one all-reduce a step that carries everything the ranks must agree on besides gradients.

Loss, tokens, expert load, who saw a number that is not finite, and who was asked to stop travel as one float64 vector, in
which counts are exact to 2^53. Shapes: L expert layers, E experts, W ranks.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunella.model.losses import load_balance_loss
from prunella.model.router import RouterOutput


@dataclass(kw_only=True, slots=True)
class LocalSums:
    """What one rank adds up over its micro-batches of a step. Tensors stay on the device until the reduction."""

    layers: int
    experts: int
    device: torch.device
    tokens: int = 0
    ce_sum: Tensor = field(init=False)
    z_sum: Tensor = field(init=False)
    counts_LE: Tensor = field(init=False)
    prob_sum_LE: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.ce_sum, self.z_sum = self._zeros(1), self._zeros(1)
        self.counts_LE = self._zeros(self.layers, self.experts)
        self.prob_sum_LE = self._zeros(self.layers, self.experts)

    def add(self, *, tokens: int, ce_sum: Tensor, z_sum: Tensor, router: tuple[RouterOutput, ...]) -> None:
        """Count one micro-batch in."""
        self.tokens += tokens
        self.ce_sum += ce_sum.detach()
        self.z_sum += z_sum.detach()
        for layer, seen in enumerate(router):
            self.counts_LE[layer] += seen.counts_E
            self.prob_sum_LE[layer] += seen.prob_sum_E.detach()

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class GlobalSums:
    """The same on every rank. `non_finite` names the ranks that saw one locally, before anything was mixed."""

    ce_sum: float
    z_sum: float
    tokens: int
    is_stop_asked: bool
    non_finite: tuple[int, ...]
    counts_LE: Tensor
    prob_sum_LE: Tensor

    @property
    def loss_nats(self) -> float:
        """Mean token cross-entropy of the global batch."""
        return self.ce_sum / self.tokens

    @property
    def router_z_loss(self) -> float:
        """Mean over tokens and expert layers; 0 in a dense model."""
        layers = self.counts_LE.shape[0]
        return self.z_sum / (self.tokens * layers) if layers else 0.0

    @property
    def load_balance(self) -> float:
        """Balance loss of the true global batch, mean over expert layers; 1 is balance, 0 in a dense model."""
        if not self.counts_LE.numel():
            return 0.0
        pairs = zip(self.counts_LE, self.prob_sum_LE, strict=True)
        losses = [float(load_balance_loss(counts / counts.sum(), probs / self.tokens)) for counts, probs in pairs]
        return sum(losses) / len(losses)


def pack(local: LocalSums, *, rank: int, world_size: int, is_non_finite: Tensor, is_stop_asked: bool) -> Tensor:
    """The vector a rank brings to the all-reduce, shape (4 + W + 2 L E,).

    Non-finite sums are zeroed: the flag says it, and one rank's NaN must not hide whose it was.
    """
    is_bad = is_non_finite | ~torch.isfinite(local.ce_sum + local.z_sum)
    flags_W = torch.zeros(world_size, dtype=torch.float64, device=local.device)
    flags_W[rank] = is_bad.double().squeeze()
    counted = torch.tensor([local.tokens, int(is_stop_asked)], dtype=torch.float64, device=local.device)
    sums = torch.cat([local.ce_sum, local.z_sum, local.prob_sum_LE.flatten()]).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return torch.cat([counted, flags_W, local.counts_LE.flatten(), sums])


def unpack(vector: Tensor, *, world_size: int, layers: int, experts: int) -> GlobalSums:
    """Read the reduced vector; one transfer from the device."""
    on_host = vector.cpu()
    sizes = [1, 1, world_size, layers * experts, 1, 1, layers * experts]
    tokens, stops, flags, counts, ce_sum, z_sum, probs = torch.split(on_host, sizes)
    return GlobalSums(
        ce_sum=float(ce_sum),
        z_sum=float(z_sum),
        tokens=round(float(tokens)),
        is_stop_asked=bool(stops > 0),
        non_finite=tuple(int(rank) for rank in flags.nonzero().flatten()),
        counts_LE=counts.round().long().view(layers, experts),
        prob_sum_LE=probs.view(layers, experts),
    )
