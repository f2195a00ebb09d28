"""Held-out loss in nats per token, and bits per byte, which compares across tokenizers.

Decides how many bytes a token stands for: in byte-level BPE each character of a token's spelling is one byte, so bytes are
exact even where a window cuts a character in two; special tokens stand for none. The end of a document therefore costs nats
but covers no text. Trusts the reader's sha256 checks.

Shapes: B sequences, T positions, V words of the vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from prunella.data.reader import TokenReader
from prunella.errors import ConfigError
from prunella.evaluation.generation import Logits


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldoutLoss:
    """Summed over all target tokens. `size_bytes` is the text that they stand for."""

    total_nats: float
    tokens: int
    size_bytes: int

    @property
    def loss_nats(self) -> float:
        """Mean cross-entropy, nats per token."""
        return self.total_nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits the model needs for each byte of text."""
        return self.total_nats / math.log(2) / self.size_bytes


def bytes_of_tokens(tokenizer: Tokenizer) -> dict[int, int]:
    """Bytes of text behind each token id of a byte-level BPE tokenizer; special tokens have none."""
    added = tokenizer.get_added_tokens_decoder()
    sizes = {number: len(spelling) for spelling, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    return sizes | {number: 0 if token.special else len(token.content.encode()) for number, token in added.items()}


@torch.no_grad()
def measure(
    logits: Logits, reader: TokenReader, tokenizer: Tokenizer, *, sequences: int, seq_len: int, batch_size: int, device: str
) -> HeldoutLoss:
    """Loss on the first `sequences` sequences of the held-out split, or on all of them where there are fewer.

    Raises:
        ConfigError: the split holds not one whole sequence, or its first ones hold no text.
    """
    count = min(sequences, reader.n_sequences(seq_len))
    if count == 0:
        raise ConfigError(
            f"held-out split: expected at least {seq_len + 1} tokens for one sequence, found {reader.n_tokens}; "
            "raise data.heldout_fraction, give more text, or lower model.seq_len"
        )
    sizes = bytes_of_tokens(tokenizer)
    total_nats, size_bytes = 0.0, 0
    for start in range(0, count, batch_size):
        rows = [torch.from_numpy(reader.sequence(index, seq_len)) for index in range(start, min(start + batch_size, count))]
        tokens_BT = torch.stack(rows)
        total_nats += _loss_sum(logits, tokens_BT.to(device))
        size_bytes += sum(sizes.get(token, 0) for token in tokens_BT[:, 1:].flatten().tolist())
    if size_bytes == 0:
        raise ConfigError("held-out split: its first sequences hold no text; raise evaluation.heldout_sequences")
    return HeldoutLoss(total_nats=total_nats, tokens=count * seq_len, size_bytes=size_bytes)


def _loss_sum(logits: Logits, tokens_BT: Tensor) -> float:
    logits_BTV = logits(tokens_BT[:, :-1]).float()
    losses = functional.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten(), reduction="none")
    return float(losses.double().sum())
