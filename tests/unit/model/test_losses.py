"""Loss terms add up over micro-batches, and the balance loss is smallest at balance."""

import math

import pytest
import torch

from prunella.config import ModelConfig
from prunella.model.losses import auxiliary_loss, cross_entropy_sum, load_balance_loss, step_loss
from prunella.model.transformer import Transformer

SMALL = ModelConfig(
    vocab_size=300, seq_len=8, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, n_experts=4, expert_ffn_dim=8
)


def gradients(micro_batches):
    """Loss and gradients of one global batch of 4 sequences, cut into micro-batches."""
    model = Transformer(SMALL)
    model.init_weights(seed=0)
    with torch.no_grad():
        for router in model.routers():
            router.load_fraction_E.copy_(torch.tensor([0.7, 0.1, 0.1, 0.1]))
    tokens = torch.randint(0, 300, (4, 9), generator=torch.Generator().manual_seed(0))
    total = torch.zeros(())
    for part in tokens.chunk(micro_batches):
        loss = step_loss(model(part[:, :-1]), part[:, 1:], model, tokens_global=32)
        loss.total.backward()
        total += loss.total.detach()
    return total, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_gradient_does_not_depend_on_the_cut_into_micro_batches(micro_batches):
    whole_loss, whole = gradients(1)

    loss, cut = gradients(micro_batches)

    torch.testing.assert_close(loss, whole_loss, rtol=1e-6, atol=0)
    for grad, expected in zip(cut, whole, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-7)


def test_cross_entropy_of_uniform_logits_is_log_vocabulary_a_token():
    loss = cross_entropy_sum(torch.zeros(2, 3, 50), torch.zeros(2, 3, dtype=torch.int64))

    assert float(loss) == pytest.approx(6 * math.log(50))


@pytest.mark.parametrize(
    ("fraction", "prob", "expected"),
    [
        ([0.25] * 4, [0.25] * 4, 1.0),
        ([1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], 4.0),
        ([1.0, 0.0, 0.0, 0.0], [0.25] * 4, 1.0),
    ],
    ids=["balanced", "collapsed", "flat probabilities hide a skewed load (FIELD 5)"],
)
def test_load_balance_loss_is_one_at_balance(fraction, prob, expected):
    assert float(load_balance_loss(torch.tensor(fraction), torch.tensor(prob))) == pytest.approx(expected)


def test_load_balance_loss_pushes_probability_away_from_the_loaded_expert():
    logits_E = torch.zeros(4, requires_grad=True)

    load_balance_loss(torch.tensor([0.7, 0.1, 0.1, 0.1]), logits_E.softmax(0)).backward()

    assert logits_E.grad[0] > 0
    assert (logits_E.grad[1:] < 0).all()


def test_dense_model_has_no_router_terms():
    model = Transformer(ModelConfig(vocab_size=300, seq_len=8, d_model=16, n_layers=1, n_heads=1, n_kv_heads=1, n_experts=0))

    load_balance, z_sum = auxiliary_loss((), model)

    assert (float(load_balance), float(z_sum)) == (0.0, 0.0)
