"""The decoder-only transformer that Prunella trains: RMSNorm, rotary grouped-query attention, dense or expert SwiGLU.

It is a plain module on plain tensors. `init_weights` fills it from one seed before anything is sharded, so that the weights are
the same at every world size; `parallel.parallelize` spreads it afterwards without changing a name.

Shapes: B sequences, T positions, D width of the model, V vocabulary, E experts, L expert layers.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunella.config import ModelConfig
from prunella.model.attention import Attention, rotary_angles
from prunella.model.feed_forward import SwiGLU
from prunella.model.moe import MixtureOfExperts
from prunella.model.router import Router, RouterOutput


class ModelOutput(NamedTuple):
    """What a forward pass says (a tuple, so that FSDP's hooks find its tensors)."""

    logits_BTV: Tensor
    router: tuple[RouterOutput, ...]


class Block(nn.Module):
    """Attention, then feed-forward, each on the normalised residual stream and added to it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        is_moe = config.is_moe_layer(layer)
        self.moe = MixtureOfExperts(config, config.top_k_at(layer)) if is_moe else None
        self.feed_forward = None if is_moe else SwiGLU(config.d_model, config.ffn_dim)

    def forward(self, x_BTD: Tensor, cos_TK2: Tensor, sin_TK2: Tensor) -> tuple[Tensor, RouterOutput | None]:
        """(B, T, D) to (B, T, D), and the router's output where the layer has one."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos_TK2, sin_TK2)
        normed_BTD = self.feed_forward_norm(x_BTD)
        if self.moe is not None:
            out_BTD, seen = self.moe(normed_BTD)
            return x_BTD + out_BTD, seen
        assert self.feed_forward is not None
        return x_BTD + self.feed_forward(normed_BTD), None


class Transformer(nn.Module):
    """Tokens to next-token logits."""

    rope_cos_TK2: Tensor
    rope_sin_TK2: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.final_norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)
        cos_TK2, sin_TK2 = rotary_angles(config)
        self.register_buffer("rope_cos_TK2", cos_TK2, persistent=False)
        self.register_buffer("rope_sin_TK2", sin_TK2, persistent=False)

    def forward(self, tokens_BT: Tensor) -> ModelOutput:
        """Logits (float32) of the token after each position.

        Args:
            tokens_BT: int64, T at most `config.seq_len`.
        """
        length = tokens_BT.shape[1]
        cos_TK2, sin_TK2 = self.rope_cos_TK2[:length], self.rope_sin_TK2[:length]
        x_BTD = self.embedding(tokens_BT)
        seen: list[RouterOutput] = []
        for block in self.layers:
            x_BTD, router = block(x_BTD, cos_TK2, sin_TK2)
            if router is not None:
                seen.append(router)
        return ModelOutput(self._logits(self.final_norm(x_BTD)), tuple(seen))

    def _logits(self, x_BTD: Tensor) -> Tensor:
        weight = self.embedding.weight if self.head is None else self.head.weight
        return functional.linear(x_BTD, weight).float()

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fill every weight from `seed`: normals of `init_std`, norms one, load even.

        Output projections get `init_std / sqrt(2 n_layers)` where `scale_residual_init` is set (FIELD 5: Megatron's rule; SIGMA
        uses one std everywhere). One CPU generator walks the parameters in name order, so the result depends on the shape and
        the seed only. Call before `parallelize`.
        """
        generator = torch.Generator().manual_seed(seed)
        residual_std = self.config.init_std / math.sqrt(2 * self.config.n_layers)
        for name, parameter in sorted(self.named_parameters()):
            is_output = name.endswith(("o_proj.weight", "down_proj", "down_proj.weight"))
            std = residual_std if is_output and self.config.scale_residual_init else self.config.init_std
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        for router in self.routers():
            router.load_fraction_E.fill_(1.0 / self.config.n_experts)
            if router.has_bias:
                router.expert_bias_E.zero_()

    def routers(self) -> tuple[Router, ...]:
        """The routers, lowest layer first."""
        return tuple(module for module in self.modules() if isinstance(module, Router))

    def update_routing(self, counts_LE: Tensor, *, tokens: int) -> None:
        """Take in the true load of the global batch that was just trained; the next step's balance loss uses it.

        Args:
            counts_LE: int64 token slots by expert layer and expert, summed over all micro-batches and ranks.
            tokens: tokens of the global batch. Counts must sum to tokens * k in every layer (asserted).
        """
        routers = self.routers()
        assert counts_LE.shape[0] == len(routers), f"counts of {counts_LE.shape[0]} layers for {len(routers)} routers"
        for router, counts_E in zip(routers, counts_LE, strict=True):
            router.update(counts_E, tokens=tokens, bias_rate=self.config.router_bias_rate)
