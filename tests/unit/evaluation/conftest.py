"""A small real tokenizer and real documents (source text of Python's `json` package), and models that need no training."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

END_OF_TEXT = "<|endoftext|>"


@pytest.fixture(scope="session")
def texts() -> list[str]:
    folder = Path(json.__file__).parent
    return [path.read_text() for path in sorted(folder.glob("*.py"))]


@pytest.fixture(scope="session")
def tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[END_OF_TEXT], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def documents(texts: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(text).ids for text in texts]


@pytest.fixture
def uniform(tokenizer: Tokenizer) -> Callable[[Tensor], Tensor]:
    """A model that knows nothing: every token is as likely as any other."""
    vocabulary = tokenizer.get_vocab_size()
    return lambda tokens_BT: torch.zeros(*tokens_BT.shape, vocabulary)


@pytest.fixture
def memorised(documents: list[list[int]], tokenizer: Tokenizer) -> Callable[[Tensor], Tensor]:
    """A model that knows the documents by heart: after any 3 of their tokens it expects the ones that follow there."""
    followers: dict[tuple[int, ...], set[int]] = {}
    for document in documents:
        for end in range(3, len(document)):
            followers.setdefault(tuple(document[end - 3 : end]), set()).add(document[end])
    vocabulary = tokenizer.get_vocab_size()

    def logits(tokens_BT: Tensor) -> Tensor:
        logits_BTV = torch.zeros(*tokens_BT.shape, vocabulary)
        for row, tokens in enumerate(tokens_BT.tolist()):
            for end in range(3, len(tokens) + 1):
                for follower in followers.get(tuple(tokens[end - 3 : end]), ()):
                    logits_BTV[row, end - 1, follower] = 10.0
        return logits_BTV

    return logits
