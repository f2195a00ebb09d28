"""Promises of the router: deterministic selection, honest counts, a bias that steers and nothing else."""

import pytest
import torch

from prunella.config import ModelConfig, RouterScore
from prunella.model.router import Router


def make_router(top_k=2, **settings):
    """A router of 4 experts over a width of 8, with seeded weights."""
    router = Router(ModelConfig(d_model=8, n_experts=4, top_k=(top_k,), **settings), top_k)
    torch.nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(0))
    return router


def tokens(n=10):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("score", list(RouterScore))
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_every_token_gets_k_different_experts_and_the_counts_add_up(score, top_k):
    assignment, seen = make_router(top_k, router_score=score)(tokens())

    assert all(len(set(row.tolist())) == top_k for row in assignment.experts_NS)
    assert int(seen.counts_E.sum()) == 10 * top_k
    assert seen.counts_E.dtype is torch.int64
    torch.testing.assert_close(seen.prob_sum_E.sum(), torch.tensor(10.0))


def test_equal_scores_go_to_the_lower_number():
    router = make_router(2)
    torch.nn.init.zeros_(router.weight)

    assignment, _ = router(tokens())

    assert assignment.experts_NS.tolist() == [[0, 1]] * 10


def test_gates_add_up_to_one_above_top_1():
    assignment, _ = make_router(2, router_score=RouterScore.SIGMOID)(tokens())

    torch.testing.assert_close(assignment.gates_NS.sum(dim=1), torch.ones(10))


def test_top_1_gate_keeps_its_probability_so_that_the_router_learns():
    router = make_router(1)

    assignment, _ = router(tokens())
    assignment.gates_NS.sum().backward()

    assert (assignment.gates_NS < 1).all()
    assert router.weight.grad.abs().sum() > 0


def test_bias_changes_who_is_chosen_but_not_the_gate():
    plain, steered = make_router(1), make_router(1, router_bias=True)
    steered.expert_bias_E[3] = 10.0
    probs_NE = torch.nn.functional.linear(tokens(), plain.weight).softmax(-1)

    assignment, _ = steered(tokens())

    assert assignment.experts_NS.flatten().tolist() == [3] * 10
    torch.testing.assert_close(assignment.gates_NS[:, 0], probs_NE[:, 3])


def test_router_is_float32_for_bf16_tokens():
    router = make_router(2)

    assignment, seen = router(tokens().bfloat16())

    assert assignment.gates_NS.dtype is seen.z_sum.dtype is torch.float32


def test_update_remembers_the_global_load_and_moves_the_bias_against_it():
    router = make_router(2, router_bias=True)

    router.update(torch.tensor([8, 4, 4, 0]), tokens=8, bias_rate=0.5)

    assert router.load_fraction_E.tolist() == [0.5, 0.25, 0.25, 0.0]
    assert router.expert_bias_E.tolist() == [-0.5, 0.0, 0.0, 0.5]


def test_counts_that_do_not_add_up_are_our_bug():
    with pytest.raises(AssertionError, match=r"counts sum to 15, expected tokens \* k = 8 \* 2"):
        make_router(2).update(torch.tensor([7, 4, 4, 0]), tokens=8, bias_rate=0.0)
