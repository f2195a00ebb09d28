"""The door between lm-evaluation-harness and a checkpoint: any of its tasks runs on any of our models.

The harness speaks text; this turns text into windows of tokens, scores them in batches, and turns the scores back. A context
longer than the model loses its left end; a continuation longer than the model is scored in pieces, each token once, with as
much context as fits. Padding stands to the right, where a causal model cannot see it. Trusts the tokenizer to be the one
the model was trained with. Never goes on the network (see the package's `__init__`).

Shapes: B sequences, T positions, V words of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from tokenizers import Tokenizer
from torch import Tensor

from prunella.evaluation.generation import Logits, Sampling, generate

#: Tokens generated where a task sets no bound of its own: the harness's own default for its language models.
_DEFAULT_GENERATED_TOKENS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A stretch of tokens for one forward pass. The last `scored` targets count; `inputs` predict `targets` one by one."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    scored: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Log-likelihood in nats, and whether every scored token was the model's first choice."""

    log_likelihood: float
    is_greedy: bool


def windows(context: Sequence[int], continuation: Sequence[int], seq_len: int) -> list[Window]:
    """Forward passes that score each token of `continuation` once, each with as much left context as `seq_len` holds."""
    whole = [*context, *continuation]
    found = []
    for start in range(len(context), len(whole), seq_len):
        end = min(start + seq_len, len(whole))
        first = max(0, end - 1 - seq_len)
        found.append(Window(inputs=tuple(whole[first : end - 1]), targets=tuple(whole[first + 1 : end]), scored=end - start))
    return found


@torch.no_grad()
def score_windows(logits: Logits, work: Sequence[Window], *, batch_size: int, device: str) -> list[Score]:
    """Score windows in batches, longest first, and answer in the order asked."""
    by_length = sorted(range(len(work)), key=lambda index: -len(work[index].inputs))
    scores: dict[int, Score] = {}
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        scores.update(zip(batch, _score_batch(logits, [work[index] for index in batch], device), strict=True))
    return [scores[index] for index in range(len(work))]


def _score_batch(logits: Logits, batch: list[Window], device: str) -> list[Score]:
    longest = max(len(window.inputs) for window in batch)
    tokens_BT = torch.tensor([[*window.inputs, *[0] * (longest - len(window.inputs))] for window in batch], device=device)
    logits_BTV = logits(tokens_BT)
    return [_score(logits_TV[: len(window.inputs)], window) for logits_TV, window in zip(logits_BTV, batch, strict=True)]


def _score(logits_TV: Tensor, window: Window) -> Score:
    logits_NV = logits_TV[-window.scored :].float()
    targets_N = torch.tensor(window.targets[-window.scored :], device=logits_NV.device)
    chosen_N = logits_NV.log_softmax(dim=-1).gather(1, targets_N[:, None])[:, 0]
    is_greedy = bool((logits_NV.argmax(dim=-1) == targets_N).all())
    return Score(log_likelihood=float(chosen_N.double().sum()), is_greedy=is_greedy)


class CheckpointLM(TemplateLM):  # type: ignore[misc]
    """A model of ours as the harness sees one.

    Args:
        logits: the model's forward pass, tokens (B, T) to logits (B, T, V).
        end_of_text: the token that starts a document where the harness gives no context.
        seed: of sampled generation, for tasks that ask for it.
    """

    def __init__(
        self, logits: Logits, tokenizer: Tokenizer, *, seq_len: int, end_of_text: int, batch_size: int, seed: int, device: str
    ) -> None:
        super().__init__()
        self._logits = logits
        self._tokenizer = tokenizer
        self._end_of_text = end_of_text
        self._seed = seed
        self._device = device
        self.max_length = seq_len
        self.batch_size = batch_size

    @property
    def eot_token_id(self) -> int:
        return self._end_of_text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text; our tokenizers add no special ones, whatever is asked."""
        tokens: list[int] = self._tokenizer.encode(string, add_special_tokens=False).ids
        return tokens

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Nats of each continuation after its context, and whether greedy decoding would write it."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        scores = self._score_all([windows(context, continuation, self.max_length) for _, context, continuation in requests])
        return [(score.log_likelihood, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Nats of each whole text after an end-of-text token."""
        texts = [self.tok_encode(request.args[0]) for request in requests]
        scores = self._score_all([windows([self._end_of_text], text, self.max_length) for text in texts])
        return [score.log_likelihood for score in scores]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Text after each context, up to the first of the task's stop strings."""
        return [self._generate(*request.args) for request in requests]

    def _score_all(self, works: list[list[Window]]) -> list[Score]:
        flat = [window for work in works for window in work]
        scores = iter(score_windows(self._logits, flat, batch_size=self.batch_size, device=self._device))
        return [_sum([next(scores) for _ in work]) for work in works]

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        stops = [settings["until"]] if isinstance(settings.get("until"), str) else list(settings.get("until") or [])
        temperature = float(settings.get("temperature", 1.0)) if settings.get("do_sample") else 0.0
        sampling = Sampling(temperature=temperature, top_k=int(settings.get("top_k", 0)), seed=self._seed)
        prompt = self.tok_encode(context) or [self._end_of_text]
        bound = int(settings.get("max_gen_toks", _DEFAULT_GENERATED_TOKENS))
        tokens: list[int] = []
        for token in generate(self._logits, prompt, seq_len=self.max_length, sampling=sampling, device=self._device):
            if token == self._end_of_text or len(tokens) == bound:
                break
            tokens.append(token)
            if any(stop in self._decode(tokens) for stop in stops):
                break
        return _before_first(self._decode(tokens), stops)

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False))


def _sum(scores: list[Score]) -> Score:
    return Score(
        log_likelihood=sum(score.log_likelihood for score in scores), is_greedy=all(score.is_greedy for score in scores)
    )


def _before_first(text: str, stops: list[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0] if stop else text
    return text
