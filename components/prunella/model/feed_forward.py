"""The dense SwiGLU feed-forward block: dense layers and shared experts.

Shapes: D width of the model, F width of the feed-forward; `...` any leading dimensions.
"""

from torch import Tensor, nn
from torch.nn import functional


class SwiGLU(nn.Module):
    """silu(x G) * (x U), projected back by D. Source: Shazeer 2020, arXiv 2002.05202."""

    def __init__(self, d_model: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, ffn_dim, bias=False)
        self.up_proj = nn.Linear(d_model, ffn_dim, bias=False)
        self.down_proj = nn.Linear(ffn_dim, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        down: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return down
