"""The mixture of experts against the plainest way to write it: a loop over tokens."""

import pytest
import torch
from torch.nn import functional

from prunella.config import ModelConfig
from prunella.errors import ConfigError
from prunella.model.moe import MixtureOfExperts


def make_moe(top_k=2, **settings):
    config = ModelConfig(d_model=16, n_experts=4, expert_ffn_dim=8, top_k=(top_k,), **settings)
    moe = MixtureOfExperts(config, top_k)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return moe


def swiglu(x, gate, up, down):
    return (functional.silu(x @ gate) * (x @ up)) @ down


def loop_over_tokens(moe, x_ND):
    """Each token through its experts, one at a time."""
    (experts_NS, gates_NS), _ = moe.router(x_ND)
    weights = (moe.experts.gate_proj, moe.experts.up_proj, moe.experts.down_proj)
    rows = [
        sum(gate * swiglu(x, *(w[e] for w in weights)) for e, gate in zip(chosen, gates, strict=True))
        for x, chosen, gates in zip(x_ND, experts_NS.tolist(), gates_NS, strict=True)
    ]
    shared = moe.shared(x_ND) if moe.shared is not None else 0
    return torch.stack(rows) + shared


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("n_shared_experts", [0, 2])
def test_output_and_gradients_equal_the_loop(top_k, n_shared_experts):
    moe = make_moe(top_k, n_shared_experts=n_shared_experts)
    x_BTD = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))

    out, _ = moe(x_BTD)
    grads = torch.autograd.grad(out.square().sum(), list(moe.parameters()))
    expected = loop_over_tokens(moe, x_BTD.flatten(0, 1))
    expected_grads = torch.autograd.grad(expected.square().sum(), list(moe.parameters()))

    torch.testing.assert_close(out.flatten(0, 1), expected, rtol=1e-4, atol=1e-5)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", [[3, 0, 5, 2], [10, 0, 0, 0], [0, 0, 0, 0]])
def test_grouped_mm_takes_experts_without_tokens(dtype, counts):
    experts = make_moe().experts.to(dtype)
    rows_MD = torch.randn(sum(counts), 16, generator=torch.Generator().manual_seed(1)).to(dtype)

    out_MD = experts(rows_MD, torch.tensor(counts))
    out_MD.float().square().sum().backward()

    weights = (experts.gate_proj, experts.up_proj, experts.down_proj)
    parts = [swiglu(part, *(w[e] for w in weights)) for e, part in enumerate(rows_MD.split(counts))]
    torch.testing.assert_close(out_MD, torch.cat(parts), rtol=2e-2, atol=1e-2)
    assert [bool(g.abs().sum() > 0) for g in experts.gate_proj.grad] == [c > 0 for c in counts]


@pytest.mark.parametrize(("key", "settings"), [("d_model", {"d_model": 20}), ("expert_ffn_dim", {"expert_ffn_dim": 12})])
def test_width_that_grouped_mm_cannot_align_is_refused(key, settings):
    with pytest.raises(ConfigError, match=rf"model\.{key}: expected a multiple of 8"):
        ModelConfig(**settings)
