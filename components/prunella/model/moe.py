"""A mixture-of-experts feed-forward block: route, send, compute, return, weigh. No token is dropped.

Experts are one stacked tensor a projection and run through `torch.nn.functional.grouped_mm`, which torch 2.13 has for float32
and bfloat16, forward and backward, also with empty experts (tried on CPU 2026-11, held by a test); there is no second path.

Shapes: N tokens, S slots of a token (k), D width of the model, F width of an expert, E experts (L of them on this rank),
M rows the experts of this rank got.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from prunella.config import ModelConfig
from prunella.model.expert_exchange import combine, dispatch, invert, permute_rows
from prunella.model.feed_forward import SwiGLU
from prunella.model.router import Router, RouterOutput


class Experts(nn.Module):
    """E SwiGLU blocks in stacked weights (E, d_in, d_out)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        wide = (config.n_experts, config.d_model, config.expert_ffn_dim)
        self.gate_proj = nn.Parameter(torch.empty(wide))
        self.up_proj = nn.Parameter(torch.empty(wide))
        self.down_proj = nn.Parameter(torch.empty(wide[0], wide[2], wide[1]))

    def forward(self, rows_MD: Tensor, counts_L: Tensor) -> Tensor:
        """Apply expert l to its `counts_L[l]` consecutive rows."""
        ends_L = counts_L.cumsum(0).to(torch.int32)
        gate_LDF, up_LDF, down_LFD = (_local(weight) for weight in (self.gate_proj, self.up_proj, self.down_proj))
        hidden_MF = functional.silu(functional.grouped_mm(rows_MD, gate_LDF, offs=ends_L))
        hidden_MF = hidden_MF * functional.grouped_mm(rows_MD, up_LDF, offs=ends_L)
        return functional.grouped_mm(hidden_MF, down_LFD, offs=ends_L)


def _local(weight: Tensor) -> Tensor:
    """This rank's experts; gradients flow back to the sharded parameter."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


class MixtureOfExperts(nn.Module):
    """Router, experts and optional shared experts, which see every token."""

    def __init__(self, config: ModelConfig, top_k: int) -> None:
        super().__init__()
        self.router = Router(config, top_k)
        self.experts = Experts(config)
        shared_dim = config.n_shared_experts * config.expert_ffn_dim
        self.shared = SwiGLU(config.d_model, shared_dim) if shared_dim else None
        #: Ranks that share the experts; None where each rank holds all of them. Set by `parallelize`.
        self.expert_group: dist.ProcessGroup | None = None

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, RouterOutput]:
        """(B, T, D) to (B, T, D), and what the router saw."""
        x_ND = x_BTD.flatten(0, 1)
        (experts_NS, gates_NS), seen = self.router(x_ND)
        order = torch.argsort(experts_NS.flatten(), stable=True)
        inverse = invert(order)
        rows = x_ND[:, None].expand(-1, experts_NS.shape[1], -1).flatten(0, 1)
        out = self._run(permute_rows(rows, order, inverse), seen.counts_E)
        out_NSD = permute_rows(out, inverse, order).view(*experts_NS.shape, -1)
        out_ND = torch.einsum("nsd,ns->nd", out_NSD.float(), gates_NS).to(x_BTD.dtype)
        if self.shared is not None:
            out_ND = out_ND + self.shared(x_ND)
        return out_ND.view_as(x_BTD), seen

    def _run(self, rows: Tensor, counts_E: Tensor) -> Tensor:
        """The experts' output for rows ordered by expert, wherever the experts live."""
        if self.expert_group is None:
            local: Tensor = self.experts(rows, counts_E)
            return local
        rows_MD, counts_L, route = dispatch(rows, counts_E, self.expert_group)
        return combine(self.experts(rows_MD, counts_L), route, self.expert_group)
