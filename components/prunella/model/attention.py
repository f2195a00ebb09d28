"""Causal grouped-query attention with rotary positions and optional QK-norm.

Shapes: B sequences, T positions, D width of the model, H query heads, G key/value heads (H a multiple of G),
K elements of a head. Attention spans the packed sequence: documents in one window see the documents before them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunella.config import ModelConfig


def rotary_angles(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position times frequency, each (seq_len, head_dim / 2). Source: RoFormer, arXiv 2104.09864."""
    half = config.head_dim // 2
    frequency_K2 = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle_TK2 = torch.arange(config.seq_len, dtype=torch.float64)[:, None] * frequency_K2
    return angle_TK2.cos().float(), angle_TK2.sin().float()


def rotate(x_BHTK: Tensor, cos_TK2: Tensor, sin_TK2: Tensor) -> Tensor:
    """Turn the pairs (i, i + K/2) by their position's angle, in float32; the result has the type of `x_BHTK`."""
    first, second = x_BHTK.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos_TK2 - second * sin_TK2, second * cos_TK2 + first * sin_TK2), dim=-1)
    return turned.to(x_BHTK.dtype)


class Attention(nn.Module):
    """Every position attends to itself and the positions before it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.q_proj = nn.Linear(config.d_model, config.n_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.d_model, config.n_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.n_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.head_dim, config.d_model, bias=False)
        norms = [nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity() for _ in "qk"]
        self.q_norm, self.k_norm = norms

    def forward(self, x_BTD: Tensor, cos_TK2: Tensor, sin_TK2: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        q_BHTK = rotate(self.q_norm(self._heads(self.q_proj(x_BTD), self.n_heads)), cos_TK2, sin_TK2)
        k_BGTK = rotate(self.k_norm(self._heads(self.k_proj(x_BTD), self.n_kv_heads)), cos_TK2, sin_TK2)
        v_BGTK = self._heads(self.v_proj(x_BTD), self.n_kv_heads)
        is_grouped = self.n_kv_heads != self.n_heads
        out_BHTK = functional.scaled_dot_product_attention(q_BHTK, k_BGTK, v_BGTK, is_causal=True, enable_gqa=is_grouped)
        out_BTD: Tensor = self.o_proj(out_BHTK.transpose(1, 2).flatten(2))
        return out_BTD

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:-1], heads, self.head_dim).transpose(1, 2)
