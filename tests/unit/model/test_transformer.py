"""Promises of the transformer: causal, seeded, and shaped as the configuration says."""

import dataclasses

import pytest
import torch

from prunella.config import ModelConfig
from prunella.model.transformer import Transformer

SMALL = ModelConfig(
    vocab_size=300,
    seq_len=12,
    d_model=16,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    n_dense_layers=1,
    ffn_dim=24,
    n_experts=4,
    expert_ffn_dim=8,
    top_k=(1, 2, 3),
)


def make_model(seed=0, **changes):
    model = Transformer(dataclasses.replace(SMALL, **changes))
    model.init_weights(seed)
    return model


def tokens(seed=0):
    return torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("changes", [{}, {"qk_norm": False}, {"tie_embeddings": True}, {"n_experts": 0, "top_k": (2,)}])
def test_a_later_token_does_not_change_an_earlier_prediction(changes):
    model = make_model(**changes)
    changed = tokens()
    changed[:, 8:] += 1
    changed %= 300

    before, after = model(tokens()).logits_BTV, model(changed).logits_BTV

    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert not torch.equal(before[:, 8:], after[:, 8:])


def test_position_matters():
    model = make_model()
    same = torch.full((1, 12), 5)
    moved = same.clone()
    moved[0, 0] = 6

    logits = model(torch.cat([same, moved])).logits_BTV

    assert not torch.allclose(logits[0, 1], logits[1, 1])
    assert not torch.allclose(logits[1, 1], logits[1, 2])


def test_weights_depend_on_the_seed_only():
    one, again, other = make_model(1), make_model(1), make_model(2)

    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.embedding.weight, other.embedding.weight)


@pytest.mark.parametrize(("is_scaled", "expected"), [(True, 0.02 / 6**0.5), (False, 0.02)])
def test_output_projections_follow_the_residual_rule(is_scaled, expected):
    model = make_model(scale_residual_init=is_scaled, d_model=128, expert_ffn_dim=128)

    assert float(model.layers[2].moe.experts.down_proj.detach().std()) == pytest.approx(expected, rel=0.05)
    assert float(model.layers[2].moe.experts.up_proj.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_each_expert_layer_reports_its_own_k():
    output = make_model()(tokens())

    assert output.logits_BTV.shape == (2, 12, 300)
    assert output.logits_BTV.dtype is torch.float32
    assert [int(seen.counts_E.sum()) for seen in output.router] == [24 * 2, 24 * 3]


def test_update_routing_takes_one_row_an_expert_layer():
    model = make_model()
    counts_LE = torch.stack([seen.counts_E for seen in model(tokens()).router])

    model.update_routing(counts_LE, tokens=24)

    torch.testing.assert_close(model.routers()[1].load_fraction_E, counts_LE[1] / 72)
    with pytest.raises(AssertionError, match="counts of 1 layers for 2 routers"):
        model.update_routing(counts_LE[:1], tokens=24)


def test_load_and_bias_are_part_of_the_state():
    names = make_model(router_bias=True).state_dict()

    assert "layers.1.moe.router.load_fraction_E" in names
    assert "layers.2.moe.router.expert_bias_E" in names
    assert not any("rope" in name for name in names)


def test_training_lowers_the_loss_on_one_batch():
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        logits = model(tokens()[:, :-1]).logits_BTV
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens()[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    assert losses[-1] < losses[0] - 1.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_computes_the_same_loss_and_gradients():
    grads = {}
    for device in ("cpu", "cuda"):
        model = make_model().to(device)
        model(tokens().to(device)).logits_BTV.square().mean().backward()
        grads[device] = {name: p.grad.cpu() for name, p in model.named_parameters()}

    for name, grad in grads["cpu"].items():
        torch.testing.assert_close(grads["cuda"][name], grad, rtol=1e-3, atol=1e-6)
