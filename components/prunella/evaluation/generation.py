"""Text from a model, one token at a time: greedy, or sampled with a seed. Recomputes the window for every token (no cache):
enough for a sample in a report and for short harness tasks.

Shapes: B sequences, T positions, V words of the vocabulary. Here B is 1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Logits = Callable[[Tensor], Tensor]  # tokens (B, T) int64 -> logits (B, T, V)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 is greedy; `top_k` 0 keeps the whole vocabulary."""

    temperature: float = 0.0
    top_k: int = 0
    seed: int = 0


GREEDY = Sampling()
#: For the sample in the report. Source: own choice 2026-11; greedy text of a small model falls into a loop.
SAMPLE = Sampling(temperature=0.8, top_k=40)


@torch.no_grad()
def generate(
    logits: Logits, prompt: list[int], *, seq_len: int, sampling: Sampling = GREEDY, device: str = "cpu"
) -> Iterator[int]:
    """Tokens after `prompt`, for ever; the caller stops. The model sees the last `seq_len` tokens.

    Raises:
        ValueError: the prompt is empty; there is nothing to condition on.
    """
    if not prompt:
        raise ValueError("the prompt is empty; start from the end-of-text token")
    generator = torch.Generator().manual_seed(sampling.seed)
    tokens = list(prompt)
    while True:
        tokens_BT = torch.tensor([tokens[-seq_len:]], dtype=torch.int64, device=device)
        token = _choose(logits(tokens_BT)[0, -1].float().cpu(), sampling, generator)
        tokens.append(token)
        yield token


def _choose(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    if sampling.temperature == 0.0:
        return int(logits_V.argmax())
    logits_V = logits_V / sampling.temperature
    if sampling.top_k:
        floor = logits_V.topk(min(sampling.top_k, logits_V.numel())).values[-1]
        logits_V = logits_V.masked_fill(logits_V < floor, -torch.inf)
    return int(torch.multinomial(logits_V.softmax(dim=-1), 1, generator=generator))
