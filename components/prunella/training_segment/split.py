"""How the fixed global batch falls apart into ranks and micro-batches. Needs no torch: the launcher asks before it launches."""

from dataclasses import dataclass

from prunella.config import BatchConfig
from prunella.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """How the global batch falls apart: sequences a rank gets, and how many of them at once."""

    rank_sequences: int
    micro_sequences: int

    @property
    def micro_batches(self) -> int:
        """Forward and backward passes of a rank in one step."""
        return self.rank_sequences // self.micro_sequences


def split_batch(batch: BatchConfig, world_size: int) -> Split:
    """Divide the global batch evenly; every rank runs the same number of equal passes, or collectives would not pair up.

    Raises:
        ConfigError: it cannot be divided.
    """
    each, rest = divmod(batch.global_sequences, world_size)
    if rest or not each:
        raise ConfigError(
            f"batch.global_sequences: expected a multiple of the {world_size} ranks, found {batch.global_sequences}; "
            "change it, the nodes or their devices"
        )
    micro = min(batch.micro_sequences, each)
    if each % micro:
        raise ConfigError(
            f"batch.micro_sequences: expected a divisor of the {each} sequences a rank gets "
            f"({batch.global_sequences} over {world_size} ranks), found {batch.micro_sequences}"
        )
    return Split(rank_sequences=each, micro_sequences=micro)
