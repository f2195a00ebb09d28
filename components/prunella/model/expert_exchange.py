"""Moving tokens to the ranks that hold their experts, and back: expert parallelism as two all-to-alls.

Rank r of the group holds experts r*E/P to (r+1)*E/P - 1. Every rank of the group must call in the same order, with any
number of rows, also none. Rows arrive ordered by local expert, within an expert by sender, so that the result is the same
at every run. The gradient takes the same way back.

Shapes: N rows sent (token slots, ordered by expert), M rows received, D width of the model, E experts, P ranks of the group,
L = E/P experts of a rank.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from prunella.model.timing import clock


class PermuteRows(torch.autograd.Function):
    """`rows[order]` whose gradient is a gather too: no atomics, hence the same bits every time on every device."""

    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, order_N: Tensor, inverse_N: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_N)
        return rows_ND[order_N]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse_N,) = ctx.saved_tensors
        return grads[0][inverse_N], None, None


def permute_rows(rows_ND: Tensor, order_N: Tensor, inverse_N: Tensor) -> Tensor:
    """Row i of the result is row `order_N[i]`; `inverse_N` is the inverse permutation."""
    permuted: Tensor = PermuteRows.apply(rows_ND, order_N, inverse_N)  # type: ignore[no-untyped-call]
    return permuted


def invert(order_N: Tensor) -> Tensor:
    """The inverse of a permutation."""
    inverse_N = torch.empty_like(order_N)
    inverse_N[order_N] = torch.arange(order_N.numel(), device=order_N.device)
    return inverse_N


class _SwapRows(torch.autograd.Function):
    """All-to-all of rows; the gradient goes back with the splits exchanged."""

    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, sent_P: list[int], received_P: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sent_P, ctx.received_P, ctx.group = sent_P, received_P, group
        return _all_to_all(rows_ND, sent_P, received_P, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(grads[0], ctx.received_P, ctx.sent_P, ctx.group), None, None, None


def _swap_rows(rows_ND: Tensor, sent_P: list[int], received_P: list[int], group: dist.ProcessGroup) -> Tensor:
    swapped: Tensor = _SwapRows.apply(rows_ND, sent_P, received_P, group)  # type: ignore[no-untyped-call]
    return swapped


def _all_to_all(rows_ND: Tensor, sent_P: list[int], received_P: list[int], group: dist.ProcessGroup) -> Tensor:
    received_MD = rows_ND.new_empty((sum(received_P), *rows_ND.shape[1:]))
    with clock.waiting():
        dist.all_to_all_single(received_MD, rows_ND.contiguous(), received_P, sent_P, group=group)
    return received_MD


class Route(NamedTuple):
    """What `dispatch` did, for `combine` to undo."""

    sent_P: list[int]
    received_P: list[int]
    order_M: Tensor
    inverse_M: Tensor


def dispatch(rows_ND: Tensor, counts_E: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Route]:
    """Send rows to the ranks of their experts.

    Args:
        rows_ND: rows ordered by expert.
        counts_E: int64 rows of each expert.

    Returns:
        The rows this rank's experts got (M, D) ordered by local expert, how many each got (L,), and the way back.
    """
    counts_PL = counts_E.view(group.size(), -1)
    received_PL = torch.empty_like(counts_PL)
    with clock.waiting():
        dist.all_to_all_single(received_PL, counts_PL.contiguous(), group=group)
    sent_P, received_P = counts_PL.sum(dim=1).tolist(), received_PL.sum(dim=1).tolist()
    order_M = _by_expert(received_PL)
    route = Route(sent_P, received_P, order_M, invert(order_M))
    rows_MD = permute_rows(_swap_rows(rows_ND, sent_P, received_P, group), order_M, route.inverse_M)
    return rows_MD, received_PL.sum(dim=0), route


def combine(rows_MD: Tensor, route: Route, group: dist.ProcessGroup) -> Tensor:
    """Send the experts' results back: the rows of `dispatch` in the order they had there."""
    return _swap_rows(permute_rows(rows_MD, route.inverse_M, route.order_M), route.received_P, route.sent_P, group)


def _by_expert(received_PL: Tensor) -> Tensor:
    """The permutation from (sender, expert) order to (expert, sender) order."""
    ranks, local = received_PL.shape
    expert_of_block = torch.arange(local, device=received_PL.device).repeat(ranks)
    expert_of_row_M = torch.repeat_interleave(expert_of_block, received_PL.flatten())
    return torch.argsort(expert_of_row_M, stable=True)
