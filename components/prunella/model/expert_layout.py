"""Over how many ranks the experts of a layer are spread. Needs no torch: a mesh that cannot be is refused before it is built.

World size W = R x P: P ranks share the experts of a layer, and the R ranks that hold the same experts shard their matrices by
one of the widths, which must divide evenly. With P = 1 every rank would hold all experts, so they are sharded by expert
instead, evenly or not: that always fits.
"""

import math

from prunella.config import Config, ModelConfig
from prunella.errors import ConfigError


def expert_parallel_size(config: Config, world_size: int) -> int:
    """Ranks that share the experts of a layer.

    Raises:
        ConfigError: the configured size does not divide world size and number of experts, or no width fits what is left.
    """
    experts, wanted = config.model.n_experts, config.parallel.expert_parallel
    if not experts:
        return 1
    fitting = [size for size in _common_divisors(world_size, experts) if _fits(config.model, world_size, size)]
    if wanted == 0:
        return fitting[-1]
    if wanted not in _common_divisors(world_size, experts):
        raise ConfigError(
            f"parallel.expert_parallel: expected a divisor of the world size {world_size} and of model.n_experts = {experts}, "
            f"found {wanted}; 0 chooses {fitting[-1]}"
        )
    if wanted not in fitting:
        raise ConfigError(
            f"parallel.expert_parallel: {wanted} leaves {world_size // wanted} ranks to hold the same experts, and neither "
            f"model.d_model = {config.model.d_model} nor model.expert_ffn_dim = {config.model.expert_ffn_dim} is a multiple of "
            f"that; 0 chooses {fitting[-1]}"
        )
    return wanted


def _common_divisors(world_size: int, experts: int) -> list[int]:
    return [size for size in range(1, math.gcd(world_size, experts) + 1) if world_size % size == 0 and experts % size == 0]


def _fits(model: ModelConfig, world_size: int, size: int) -> bool:
    replicas = world_size // size
    return size == 1 or any(width % replicas == 0 for width in (model.d_model, model.expert_ffn_dim))
