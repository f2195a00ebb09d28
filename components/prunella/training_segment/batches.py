"""Which sequences of a step's global batch this rank trains on, in which micro-batches: a pure function of the step."""

import torch
from torch import Tensor

from prunella.config import Config
from prunella.data.order import batch_for_step, sequences_for_batch
from prunella.data.reader import TokenReader
from prunella.errors import ConfigError
from prunella.records import Window
from prunella.training_segment.split import split_batch


class StepBatches:
    """This rank's micro-batches of any step: a pure function of (seed, step, skipped windows)."""

    def __init__(self, config: Config, reader: TokenReader, skipped: tuple[Window, ...], *, rank: int, world_size: int) -> None:
        self._config = config
        self._reader = reader
        self._skipped = skipped
        self._rank = rank
        self.split = split_batch(config.batch, world_size)
        self._sequences = reader.n_sequences(config.model.seq_len)
        if self._sequences < 1:
            raise ConfigError(
                f"data: the training split has {reader.n_tokens} tokens, too few for one sequence of "
                f"model.seq_len = {config.model.seq_len}; add text to data.inputs"
            )

    def batch_number(self, step: int) -> int:
        """The batch (from 0) that a step trains on."""
        return batch_for_step(step, self._skipped)

    def micro_batch(self, step: int, index: int) -> tuple[Tensor, Tensor]:
        """Tokens and targets, each int64 (B, T), of micro-batch `index` of this rank in `step`."""
        order = sequences_for_batch(
            self.batch_number(step),
            seed=self._config.seed,
            n_sequences=self._sequences,
            global_sequences=self._config.batch.global_sequences,
        )
        first = self._rank * self.split.rank_sequences + index * self.split.micro_sequences
        chosen = order[first : first + self.split.micro_sequences]
        windows = [torch.from_numpy(self._reader.sequence(int(number), self._config.model.seq_len)) for number in chosen]
        stacked = torch.stack(windows)
        return stacked[:, :-1].contiguous(), stacked[:, 1:].contiguous()
