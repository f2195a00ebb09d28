from collections.abc import Callable
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer
from torch import Tensor

from prunella.config import ModelConfig
from prunella.evaluation.generation import Sampling, generate
from prunella.evaluation.harness import CheckpointLM, Window, windows
from prunella.model.transformer import Transformer

SEQ_LEN = 16
MODEL = ModelConfig(
    vocab_size=400,
    seq_len=SEQ_LEN,
    d_model=16,
    n_layers=2,
    n_heads=2,
    n_kv_heads=1,
    head_dim=8,
    n_experts=4,
    expert_ffn_dim=16,
    init_std=0.5,
)


@pytest.fixture(scope="module")
def logits() -> Callable[[Tensor], Tensor]:
    model = Transformer(MODEL).eval().requires_grad_(False)
    model.init_weights(seed=3)
    return lambda tokens_BT: model(tokens_BT).logits_BTV


def _adapter(logits: Callable[[Tensor], Tensor], tokenizer: Tokenizer, *, batch_size: int = 3) -> CheckpointLM:
    return CheckpointLM(logits, tokenizer, seq_len=SEQ_LEN, end_of_text=0, batch_size=batch_size, seed=7, device="cpu")


def _requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=item, idx=0) for item in arguments]


def _direct(logits: Callable[[Tensor], Tensor], context: list[int], continuation: list[int]) -> float:
    """Log-likelihood one token and one unpadded forward pass at a time."""
    tokens, total = list(context), 0.0
    for target in continuation:
        total += float(logits(torch.tensor([tokens[-SEQ_LEN:]]))[0, -1].log_softmax(-1)[target])
        tokens.append(target)
    return total


def test_log_likelihood_equals_the_direct_computation_in_the_order_asked(logits, tokenizer) -> None:
    pairs = [("def ", "f"), ("import", " json"), ("return value", " in sep"), ("x", " = None"), ("", "if x")]

    answers = _adapter(logits, tokenizer).loglikelihood(_requests("loglikelihood", *pairs))

    for (context, continuation), (found, _) in zip(pairs, answers, strict=True):
        whole = tokenizer.encode(context + continuation).ids
        start = len(tokenizer.encode(context.rstrip()).ids)
        expected = _direct(logits, whole[:start] or [0], whole[start:])
        assert found == pytest.approx(expected, rel=1e-4)


def test_log_likelihood_does_not_depend_on_the_batch_size(logits, tokenizer, texts) -> None:
    requests = _requests("loglikelihood", *[(text[:20], text[20:30]) for text in texts])

    one, many = (_adapter(logits, tokenizer, batch_size=size).loglikelihood(requests) for size in (1, 6))

    assert [value for value, _ in one] == pytest.approx([value for value, _ in many], rel=1e-5)


def test_a_long_context_loses_its_left_end(logits, tokenizer, texts) -> None:
    context = texts[0][:200].rstrip()
    whole = tokenizer.encode(context + " the end").ids
    start = len(tokenizer.encode(context).ids)
    kept = whole[-SEQ_LEN - 1 :]

    [(found, _)] = _adapter(logits, tokenizer).loglikelihood(_requests("loglikelihood", (context, " the end")))

    split = len(kept) - (len(whole) - start)
    assert found == pytest.approx(_direct(logits, kept[:split], kept[split:]), rel=1e-4)


def test_greedy_is_told_apart(logits, tokenizer) -> None:
    adapter = _adapter(logits, tokenizer)
    written = next(generate(logits, [5, 6, 7], seq_len=SEQ_LEN))

    answers = adapter._loglikelihood_tokens([(("", ""), [5, 6, 7], [token]) for token in (written, (written + 1) % 400)])

    assert [is_greedy for _, is_greedy in answers] == [True, False]


def test_rolling_log_likelihood_covers_each_token_once(uniform, tokenizer, texts) -> None:
    text = texts[0][:300]
    count = len(tokenizer.encode(text).ids)

    [found] = _adapter(uniform, tokenizer).loglikelihood_rolling(_requests("loglikelihood_rolling", (text,)))

    assert found == pytest.approx(-count * torch.log(torch.tensor(400.0)).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("context", "continuation", "expected"),
    [
        ([1], [2, 3], [Window(inputs=(1, 2), targets=(2, 3), scored=2)]),
        ([1, 2, 3, 4, 5], [6], [Window(inputs=(2, 3, 4, 5), targets=(3, 4, 5, 6), scored=1)]),
        (
            [0],
            [1, 2, 3, 4, 5],
            [
                Window(inputs=(0, 1, 2, 3), targets=(1, 2, 3, 4), scored=4),
                Window(inputs=(1, 2, 3, 4), targets=(2, 3, 4, 5), scored=1),
            ],
        ),
        ([1], [], []),
    ],
)
def test_windows_keep_as_much_context_as_fits(context, continuation, expected) -> None:
    assert windows(context, continuation, 4) == expected


def test_generation_stops_before_the_stop_string(memorised, tokenizer, texts) -> None:
    text = texts[0]
    start = text.index("\nimport")
    settings = {"until": ["\n\n\n"], "max_gen_toks": 60}

    [found] = _adapter(memorised, tokenizer).generate_until(_requests("generate_until", (text[:start], settings)))

    assert found
    assert "\n\n\n" not in found
    assert len(tokenizer.encode(found).ids) <= 60


def test_greedy_generation_continues_what_was_learnt_by_heart(memorised, tokenizer, documents) -> None:
    document = documents[0]
    prompt, follower = document[:5], document[5]

    [found] = _adapter(memorised, tokenizer).generate_until(
        _requests("generate_until", (tokenizer.decode(prompt), {"until": [], "max_gen_toks": 1}))
    )

    assert found == tokenizer.decode([follower])


def test_generation_without_context_starts_from_the_end_of_text(logits, tokenizer) -> None:
    [found] = _adapter(logits, tokenizer).generate_until(_requests("generate_until", ("", {"until": [], "max_gen_toks": 4})))

    assert found == tokenizer.decode(
        [token for token, _ in zip(generate(logits, [0], seq_len=SEQ_LEN), range(4), strict=False)]
    )


def test_sampled_text_repeats_with_its_seed_and_stays_in_the_best_k(logits) -> None:
    def sample(seed: int, top_k: int = 0) -> list[int]:
        stream = generate(logits, [1, 2], seq_len=SEQ_LEN, sampling=Sampling(temperature=1.0, top_k=top_k, seed=seed))
        return [next(stream) for _ in range(12)]

    greedy = generate(logits, [1, 2], seq_len=SEQ_LEN)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert sample(1, top_k=1) == [next(greedy) for _ in range(12)]


def test_an_empty_prompt_is_refused(logits) -> None:
    with pytest.raises(ValueError, match="end-of-text"):
        next(generate(logits, [], seq_len=SEQ_LEN))
