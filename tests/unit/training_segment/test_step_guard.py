import math

import pytest
import torch
from torch import nn

from prunella.model.router import RouterOutput
from prunella.training_segment.failures import NonFiniteStep
from prunella.training_segment.fused_sums import GlobalSums, LocalSums, pack, unpack
from prunella.training_segment.guards import GradientGuard, require_finite

CPU = torch.device("cpu")


def local_sums(ce_sum: float, counts: list[int]) -> LocalSums:
    local = LocalSums(layers=1, experts=2, device=CPU)
    counts_E = torch.tensor(counts)
    router = RouterOutput(counts_E, torch.tensor([2.0, 2.0]), torch.tensor(4.0), 4)
    local.add(tokens=4, ce_sum=torch.tensor(ce_sum), z_sum=torch.tensor(8.0), router=(router,))
    return local


def reduced(*ranks: tuple[LocalSums, bool, bool]) -> GlobalSums:
    """What an all-reduce over these ranks gives: (sums, saw a non-finite gradient, was asked to stop)."""
    vectors = [
        pack(local, rank=rank, world_size=len(ranks), is_non_finite=torch.tensor([is_bad]), is_stop_asked=is_asked)
        for rank, (local, is_bad, is_asked) in enumerate(ranks)
    ]
    return unpack(torch.stack(vectors).sum(dim=0), world_size=len(ranks), layers=1, experts=2)


def test_sums_of_all_ranks_survive_the_reduction() -> None:
    sums = reduced((local_sums(8.0, [3, 1]), False, False), (local_sums(16.0, [1, 3]), False, False))

    assert sums.tokens == 8
    assert sums.loss_nats == 3.0
    assert sums.router_z_loss == 2.0
    assert sums.load_balance == pytest.approx(1.0)
    assert sums.counts_LE.tolist() == [[4, 4]]
    assert not sums.is_stop_asked
    require_finite(sums, 1.0, step=1)


def test_one_rank_asked_to_stop_stops_all() -> None:
    assert reduced((local_sums(1.0, [2, 2]), False, False), (local_sums(1.0, [2, 2]), False, True)).is_stop_asked


def test_rank_with_a_nan_loss_is_named_and_hides_nobody_elses_numbers() -> None:
    sums = reduced((local_sums(8.0, [2, 2]), False, False), (local_sums(math.nan, [2, 2]), False, False))

    with pytest.raises(NonFiniteStep) as caught:
        require_finite(sums, 1.0, step=5)

    assert (caught.value.rank, caught.value.step) == (1, 5)
    assert sums.ce_sum == 8.0


def test_infinite_gradient_norm_alone_is_refused_and_blames_nobody() -> None:
    sums = reduced((local_sums(8.0, [2, 2]), False, False), (local_sums(8.0, [2, 2]), False, False))

    with pytest.raises(NonFiniteStep) as caught:
        require_finite(sums, math.inf, step=5)

    assert caught.value.rank is None


@pytest.mark.parametrize("is_poisoned", [False, True])
def test_poisoned_gradient_reaches_the_weights_and_is_seen_on_this_rank(is_poisoned: bool) -> None:
    first, final = nn.Linear(2, 2), nn.Linear(2, 2)
    guard = GradientGuard(final, CPU)
    guard.begin_step(is_poisoned=is_poisoned)

    final(first(torch.ones(1, 2))).sum().backward()

    assert bool(guard.is_non_finite) is is_poisoned
    assert first.weight.grad is not None
    assert bool(first.weight.grad.isnan().any()) is is_poisoned
