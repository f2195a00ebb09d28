"""How the model is spread over ranks: experts over an expert group, everything over all ranks by FSDP2.

World size W = R x P: P ranks share the experts of a layer (each holds E/P of them, as DTensor Shard(0)), and FSDP2 shards each
expert's matrices over the R ranks that hold the same experts (`expert_layout`); with P = 1 it shards the stack of experts.
All other parameters are sharded over all W. Nothing is replicated, so the norm of all local shards is the norm of the model.
Gradients are SUMS over ranks of what each rank's backward contributed (see `losses`). Names never change: the state dict of any
layout is the logical model as DTensors.

The caller has set up the default process group (gloo for CPU, NCCL for CUDA), also for one rank. All ranks must run the same
number of forward and backward passes: collectives pair up by order.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from prunella.config import Config, Precision
from prunella.model.collectives import sum_and_time
from prunella.model.expert_layout import expert_parallel_size
from prunella.model.moe import Experts, MixtureOfExperts
from prunella.model.timing import clock
from prunella.model.transformer import Transformer

#: Keeps clipping from dividing by zero. Source: torch.nn.utils.clip_grad_norm_ (torch 2.13), same value.
_NORM_EPS = 1e-6


def parallelize(model: Transformer, config: Config, *, world_size: int, device: torch.device) -> None:
    """Shard `model` in place and move it to `device`. Every rank calls it with the same full weights.

    Raises:
        ConfigError: the experts cannot be divided as configured.
    """
    expert_parallel = expert_parallel_size(config, world_size)
    shape = (world_size // expert_parallel, expert_parallel)
    world = init_device_mesh(device.type, (world_size,), mesh_dim_names=("world",))
    expert_mesh = init_device_mesh(device.type, shape, mesh_dim_names=("expert_data", "expert"))
    model.to(device)
    policy = _policy(config.optim.precision)
    for block in model.layers:
        for moe in (module for module in block.modules() if isinstance(module, MixtureOfExperts)):
            _shard_experts(moe, expert_mesh, policy)
            if config.optim.precision is Precision.BF16:
                # A group of its own: the router computes on float32 weights, not on weights rounded to bf16.
                fully_shard(moe.router, mesh=world, mp_policy=_policy(Precision.FP32))
        fully_shard(block, mesh=world, mp_policy=policy)
    fully_shard(model, mesh=world, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            sum_and_time(module)


def _policy(precision: Precision) -> MixedPrecisionPolicy:
    """bf16 arithmetic with float32 gradient sums; the shards stay float32. Inputs are not cast: rotary angles stay float32."""
    if precision is Precision.FP32:
        return MixedPrecisionPolicy(cast_forward_inputs=False)
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


def _shard_experts(moe: MixtureOfExperts, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
    """Give this rank its experts, then let FSDP2 shard their matrices over the ranks that hold the same ones."""
    expert, replicas = mesh["expert"], mesh["expert_data"]
    if expert.size() == 1:
        fully_shard(moe.experts, mesh=replicas, mp_policy=policy)
        return
    _keep_own_experts(moe.experts, expert)
    moe.expert_group = expert.get_group()
    fully_shard(
        moe.experts,
        mesh=replicas,
        mp_policy=policy,
        shard_placement_fn=lambda parameter: _placement_in_expert(parameter, replicas.size()),
    )


def _keep_own_experts(experts: Experts, mesh: DeviceMesh) -> None:
    """Replace each stacked weight by this rank's slice of it, as a DTensor Shard(0); cloned so that the rest is freed."""
    for name, weight in list(experts.named_parameters()):
        own = weight.detach().chunk(mesh.size())[mesh.get_local_rank()].clone()
        sharded = DTensor.from_local(own, mesh, [Shard(0)], run_check=False)
        setattr(experts, name, nn.Parameter(sharded))


def _placement_in_expert(weight: nn.Parameter, replicas: int) -> Shard:
    """A matrix dimension that the replicas divide evenly: FSDP2 requires that off dimension 0, which the experts own."""
    return Shard(next(dim for dim in (1, 2) if weight.shape[dim] % replicas == 0))


def grad_norm(model: nn.Module) -> Tensor:
    """L2 norm of all gradients of the whole model, float64 scalar, the same on every rank. Collective.

    Valid because every parameter is sharded over all ranks without replicas. Parameters without a gradient count as zero.
    """
    gradients = _local_gradients(model)
    squared = torch.stack(torch._foreach_norm(gradients)).double().square().sum()
    with clock.waiting():
        dist.all_reduce(squared)
    return squared.sqrt()


def clip_(model: nn.Module, norm: Tensor, max_norm: float) -> None:
    """Scale all gradients so that their norm, `norm` now, is at most `max_norm`. Check that `norm` is finite first."""
    scale = (max_norm / (norm + _NORM_EPS)).clamp(max=1.0).float()
    torch._foreach_mul_(_local_gradients(model), scale)


def _local_gradients(model: nn.Module) -> list[Tensor]:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
