"""The probe: a few held-out sequences whose loss is recorded at every save and must be reproduced by validation.

The same sequences for every world size and every checkpoint of a data set. Computing it changes neither weights, nor
routing buffers, nor random state.

Shapes: N sequences, T positions.
"""

import torch
from torch import Tensor, nn

from prunella.config import Config
from prunella.data.manifest import HELDOUT, DatasetManifest
from prunella.data.reader import TokenReader
from prunella.errors import ConfigError
from prunella.model.losses import cross_entropy_sum
from prunella.storage import Store

#: Held-out sequences in the probe. Source: own choice 2026-11: enough that every expert of the demo gets tokens.
PROBE_SEQUENCES = 4


def probe_batch(store: Store, dataset: DatasetManifest, config: Config) -> Tensor:
    """The first held-out sequences, int64, shape (N, T + 1): inputs, and targets one further.

    Raises:
        ConfigError: the held-out split has not one whole sequence.
        DataCorrupt: a held-out shard is damaged.
    """
    seq_len = config.model.seq_len
    reader = TokenReader(store, dataset, HELDOUT)
    count = min(PROBE_SEQUENCES, reader.n_sequences(seq_len))
    if count == 0:
        raise ConfigError(
            f"data.heldout_fraction: expected at least {seq_len + 1} held-out tokens (one sequence), found "
            f"{dataset.heldout_tokens}; raise it, or give more text"
        )
    return torch.stack([torch.from_numpy(reader.sequence(index, seq_len)) for index in range(count)])


@torch.no_grad()
def probe_loss(model: nn.Module, tokens_NT1: Tensor) -> float:
    """Mean cross-entropy of the probe in nats. On a model spread over ranks, all ranks call it with the same tokens."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        output = model(tokens_NT1[:, :-1].to(device))
        targets_NT = tokens_NT1[:, 1:].to(device)
        return float(cross_entropy_sum(output.logits_BTV, targets_NT)) / targets_NT.numel()
    finally:
        model.train(was_training)
