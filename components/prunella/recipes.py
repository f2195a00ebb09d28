"""Recipes: functions that return a full configuration. Their names are what `--recipe` takes.

Two are trained here (`tiny_moe`, `tiny_dense`). Two are the published shapes of the SIGMA models: they build on the meta
device and are measured for a mesh (`prunella recipe show NAME`, `model/accounting.py`); nothing pretends to train them here.
Imports the standard library only.
"""

from collections.abc import Callable

from prunella import codec
from prunella.config import (
    BatchConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    Precision,
    RouterScore,
)
from prunella.errors import ConfigError


def tiny_moe() -> Config:
    """The demo: a 2.3M-parameter mixture of experts that learns Python's standard library on two CPU nodes.

    120 steps in 3 segments, 2,048 tokens a step. Own measurement 2026-11 on 2 ranks of one thread: a step costs each rank about
    0.3 s of processor time; the loss falls from 7.66 to 5.00 nats; the busiest expert of a layer ends at 1.2 to 1.5 times the
    mean load. At twice the learning rate the router collapses for some 50 steps (loss 5.07 at the end).
    """
    return Config(
        recipe="tiny_moe",
        segments=3,
        steps_per_segment=40,
        nodes=2,
        model=ModelConfig(
            vocab_size=2048,
            seq_len=128,
            d_model=128,
            n_layers=4,
            n_heads=4,
            n_kv_heads=2,
            head_dim=32,
            n_experts=8,
            expert_ffn_dim=128,
            top_k=(2,),
            load_balance_coef=3e-2,
        ),
        data=DataConfig(max_bytes=8_000_000),
        optim=OptimConfig(learning_rate=1.5e-3),
        batch=BatchConfig(global_sequences=16, micro_sequences=8),
    )


def tiny_dense() -> Config:
    """The demo's dense sister: the same attention and data, one feed-forward block as wide as the two active experts."""
    return Config(
        recipe="tiny_dense",
        segments=3,
        steps_per_segment=40,
        nodes=2,
        model=ModelConfig(
            vocab_size=2048,
            seq_len=128,
            d_model=128,
            n_layers=4,
            n_heads=4,
            n_kv_heads=2,
            head_dim=32,
            n_experts=0,
            ffn_dim=256,
        ),
        data=DataConfig(max_bytes=8_000_000),
        optim=OptimConfig(learning_rate=1.5e-3),
        batch=BatchConfig(global_sequences=16, micro_sequences=8),
    )


def sigma_moe_200b() -> Config:
    """SIGMA's 200B mixture of experts, 20B active (arXiv 2512.13488), as far as its shape is known.

    Inferred (FIELD 5, D), not published: layers, widths, heads, experts, top-8 and vocabulary; they sum to 198.8B, 23.7B active
    (above the 20B of a summary). Taken over from the 17B-A2B of the same family (FIELD 5, C): sequence length, sigmoid router
    with auxiliary loss 1e-3, Adam eps, init std, warm-up-stable-decay. Own choice, for want of a source: rope theta, learning
    rate, nodes and steps, a global batch of 4,096 sequences (16.8M tokens; 17B-A2B takes 13.3M).
    """
    return Config(
        recipe="sigma_moe_200b",
        segments=1000,
        steps_per_segment=1000,
        nodes=256,
        model=ModelConfig(
            vocab_size=200_064,
            seq_len=4096,
            d_model=5120,
            n_layers=60,
            n_heads=64,
            n_kv_heads=8,
            head_dim=128,
            rope_theta=1_000_000.0,
            init_std=0.0125,
            scale_residual_init=False,
            n_experts=96,
            expert_ffn_dim=2160,
            top_k=(8,),
            router_score=RouterScore.SIGMOID,
            load_balance_coef=1e-3,
        ),
        data=_own_corpus(),
        optim=OptimConfig(learning_rate=2.6e-4, eps=5e-10, warmup_steps=2000, precision=Precision.BF16),
        batch=BatchConfig(global_sequences=4096, micro_sequences=1),
    )


def sigma_moe_tiny() -> Config:
    """Sigma-MoE-Tiny, 20B parameters with 0.5B active (arXiv 2512.16248).

    Known (FIELD 5 and summaries of the paper, S): 56 layers, width 1536, 96 experts of width 768, top-1, 16 heads with 4 KV
    heads, QK-norm. Inferred: heads of 96 (width / heads), tied embeddings, the vocabulary of 151,936, sequence 4096; the sum is
    19.6B, and 0.54B active without the embedding table. The paper starts with more active experts in the lower layers
    (progressive sparsification); this is the final, top-1 shape. Own choice: learning rate, nodes and steps, global batch.
    """
    return Config(
        recipe="sigma_moe_tiny",
        segments=1000,
        steps_per_segment=1000,
        nodes=16,
        model=ModelConfig(
            vocab_size=151_936,
            seq_len=4096,
            d_model=1536,
            n_layers=56,
            n_heads=16,
            n_kv_heads=4,
            head_dim=96,
            rope_theta=1_000_000.0,
            tie_embeddings=True,
            init_std=0.0125,
            scale_residual_init=False,
            n_experts=96,
            expert_ffn_dim=768,
            top_k=(1,),
            load_balance_coef=1e-3,
        ),
        data=_own_corpus(),
        optim=OptimConfig(learning_rate=2.6e-4, eps=5e-10, warmup_steps=2000, precision=Precision.BF16),
        batch=BatchConfig(global_sequences=2048, micro_sequences=2),
    )


def _own_corpus() -> DataConfig:
    """Where a user of a large recipe puts the corpus and the tokenizer; neither comes with Prunella."""
    return DataConfig(inputs=("corpus/*.parquet",), tokenizer="corpus/tokenizer.json")


RECIPES: dict[str, Callable[[], Config]] = {
    "tiny_moe": tiny_moe,
    "tiny_dense": tiny_dense,
    "sigma_moe_200b": sigma_moe_200b,
    "sigma_moe_tiny": sigma_moe_tiny,
}


def recipe(name: str) -> Config:
    """The configuration of a recipe.

    Raises:
        ConfigError: there is no such recipe.
    """
    if name not in RECIPES:
        raise ConfigError(f"recipe: expected one of {', '.join(RECIPES)}, found {name!r}{codec.suggest(name, list(RECIPES))}")
    return RECIPES[name]()
