"""AdamW with decay groups. Matrices decay; norms, biases and every other one-dimensional parameter do not.

Parameters on different device meshes go into groups of their own, because the fused kernel takes one mesh at a time. The
groups and their order depend on names and shapes only, so every world size has the same logical state.
"""

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from prunella.config import OptimConfig


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """The optimizer of a (sharded) model; its learning rate is set before every step."""
    groups: dict[tuple[bool, str], list[nn.Parameter]] = {}
    for _, parameter in sorted(model.named_parameters()):
        groups.setdefault((is_decayed(parameter), _mesh_of(parameter)), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": members, "weight_decay": optim.weight_decay if key[0] else 0.0} for key, members in sorted(groups.items())],
        lr=optim.learning_rate,
        betas=(optim.betas[0], optim.betas[1]),
        eps=optim.eps,
        fused=True,
    )


def is_decayed(parameter: nn.Parameter) -> bool:
    """Whether weight decay pulls at a parameter: matrices and stacks of matrices only."""
    return parameter.ndim >= 2


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use `learning_rate` for the next step, in every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def _mesh_of(parameter: nn.Parameter) -> str:
    return repr(parameter.device_mesh) if isinstance(parameter, DTensor) else ""
