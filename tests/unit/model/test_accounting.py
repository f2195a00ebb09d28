"""The arithmetic of cost against the real model, and against a count by hand."""

import dataclasses

import pytest
import torch

from prunella.config import Config, ModelConfig, OptimConfig, Precision
from prunella.model.accounting import count, describe, flops_per_token, memory_per_device, mfu, peak_flops
from prunella.model.transformer import Transformer
from prunella.recipes import RECIPES

ODD = ModelConfig(
    n_layers=3,
    n_dense_layers=1,
    top_k=(1, 2, 3),
    n_shared_experts=2,
    tie_embeddings=True,
    qk_norm=False,
    n_experts=4,
    expert_ffn_dim=64,
)


@pytest.mark.parametrize("model", [ODD, *(make().model for make in RECIPES.values())], ids=["odd", *RECIPES])
def test_counts_equal_the_model_on_the_meta_device(model):
    with torch.device("meta"):
        parameters = dict(Transformer(model).named_parameters())
    total = sum(p.numel() for p in parameters.values())
    experts = sum(p.numel() for name, p in parameters.items() if ".experts." in name)

    size = count(model)

    assert (size.parameters, size.expert_parameters) == (total, experts)
    assert size.router_parameters == sum(p.numel() for name, p in parameters.items() if "router" in name)


def test_active_parameters_leave_out_the_experts_a_token_does_not_visit():
    size = count(ODD)

    idle = (4 - 2 + 4 - 3) * 3 * ODD.d_model * 64
    assert size.parameters - size.active_parameters == idle


def test_flops_of_a_small_dense_model_equal_the_count_by_hand():
    model = ModelConfig(
        vocab_size=1000, seq_len=32, d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, n_experts=0, ffn_dim=16
    )
    projections = 8 * 8 + 2 * 8 * 4 + 8 * 8
    feed_forward = 3 * 8 * 16
    attention = 2 * (2 * 2 * 4 * 32) / 2  # scores and values, 2 FLOPs a multiply-add, half of them masked

    forward = 2 * (projections + feed_forward + 8 * 1000) + attention

    assert flops_per_token(model) == 3 * forward


def test_memory_falls_with_the_world_and_with_expert_parallelism():
    config = RECIPES["sigma_moe_200b"]()

    small, large = (memory_per_device(config, world_size=w, expert_parallel=8) for w in (256, 2048))
    spread = memory_per_device(config, world_size=256, expert_parallel=32)

    assert small.parameters == 8 * large.parameters
    assert small.moments == 2 * small.gradients == 2 * small.parameters
    assert spread.unsharded < small.unsharded


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H200", Precision.BF16, 989e12),
        ("NVIDIA H100 80GB HBM3", Precision.FP32, 67e12),
        ("NVIDIA A100-SXM4-80GB", Precision.BF16, 312e12),
        ("NVIDIA H100 PCIe", Precision.BF16, None),
        ("NVIDIA H200 NVL", Precision.BF16, None),
        ("NVIDIA H200 MIG 1g.18gb", Precision.BF16, None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", Precision.FP32, None),
        ("cpu", Precision.FP32, None),
    ],
)
def test_peak_is_known_for_the_cards_in_the_table_only(name, precision, expected):
    assert peak_flops(name, precision) == expected


def test_mfu_of_a_device_at_its_peak_is_one_and_does_not_apply_on_cpu():
    config = Config(optim=OptimConfig(precision=Precision.BF16))
    tokens_per_s = 2 * 989e12 / flops_per_token(config.model)

    assert mfu(config, tokens_per_s=tokens_per_s, devices=2, device_name="NVIDIA H200") == pytest.approx(1.0)
    assert mfu(config, tokens_per_s=tokens_per_s, devices=2, device_name="cpu") is None


def test_description_measures_a_recipe_for_a_mesh():
    config = dataclasses.replace(RECIPES["tiny_moe"](), recipe="mine")

    text = "\n".join(describe(config, world_size=4).lines())

    assert "4 devices, 4 share the experts" in text
    assert f"{count(config.model).parameters:,}" in text
    assert "GiB" in text or "MiB" in text
