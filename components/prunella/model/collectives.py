"""FSDP2's collectives with a clock around them, through its hooks `set_custom_all_gather` and `set_custom_reduce_scatter`.

On CPU they block, so the clock sees the whole wait; FSDP's own prefetch is given up there (with one thread a rank nothing would
overlap). On an accelerator the call is only enqueued, and FSDP orders it by streams.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter

from prunella.model.timing import clock


class _Allocating:
    """Plain buffers, as FSDP's default communication allocates them."""

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(math.prod(int(length) for length in size), dtype=dtype, device=device)


class TimedAllGather(_Allocating, AllGather):
    """Gathers a parameter group, counting the wait."""

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        is_async = async_op and input_tensor.is_cuda
        with clock.waiting():
            work: dist.Work | None = dist.all_gather_single(output_tensor, input_tensor, group=group, async_op=is_async)
        return work


class TimedReduceScatter(_Allocating, ReduceScatter):
    """Sums and scatters a group's gradients, counting the wait."""

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp | dist.ReduceOp.RedOpType,
        async_op: bool = False,
    ) -> dist.Work | None:
        is_async = async_op and input_tensor.is_cuda
        with clock.waiting():
            work: dist.Work | None = dist.reduce_scatter_single(
                output_tensor, input_tensor, op=op, group=group, async_op=is_async
            )
        return work


def sum_and_time(module: FSDPModule) -> None:
    """Make the gradients of one FSDP module sums over ranks (its default is the mean), and time its collectives."""
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)  # gloo has no PREMUL_SUM, which a divide factor would ask for
    module.set_custom_all_gather(TimedAllGather())
    module.set_custom_reduce_scatter(TimedReduceScatter())
