"""Multiple-choice questions made from held-out documents. Pure: the same documents and seed give the same questions.

Two kinds. `continuation`: which of these windows comes next? The distractors are windows of other held-out documents.
`order`: in which order do the next tokens stand? In each distractor two of the true tokens have changed places, so that topic
says nothing.
In both, every choice is as long in tokens as the true one once it is read after the context, because a sum of
log-likelihoods favours the shorter; and the true one takes each place equally often. So a model that knows nothing scores
exactly at chance. Trusts the split: a document that was trained on makes every score a lie. Never looks at a model, so that
every checkpoint of an experiment answers the same questions.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

Document = Sequence[int]

#: What a decoder writes for bytes that are no UTF-8: the window was cut inside a character.
_REPLACEMENT = "\ufffd"
#: Draws allowed for each question before the documents count as exhausted. Source: own choice 2026-11; a draw is thrown
#: away when its window is cut inside a character, is blank, was drawn before, or reads as another number of tokens.
_DRAWS_PER_QUESTION = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """`choices[answer]` is what the document says after `context`."""

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """How many questions, of what size. Lengths in tokens."""

    questions: int
    choices: int
    context_tokens: int
    answer_tokens: int

    @property
    def window_tokens(self) -> int:
        """Tokens a document must have to ask a question about."""
        return self.context_tokens + self.answer_tokens


def shape_for(*, questions: int, choices: int, seq_len: int) -> Shape:
    """Questions that fit a model of `seq_len` tokens: 64 tokens of context and 16 of answer where there is room.

    Source: own choice 2026-11: 16 tokens are about one line of source text; 64 are the few before it.
    """
    return Shape(
        questions=questions,
        choices=choices,
        context_tokens=max(1, min(64, seq_len // 2)),
        answer_tokens=max(4, min(16, seq_len // 4)),
    )


def split_documents(tokens: Sequence[int], end_of_text: int) -> list[list[int]]:
    """The documents of a packed stream, without their end marks; the last may be cut short."""
    documents: list[list[int]] = [[]]
    for token in tokens:
        if token == end_of_text:
            documents.append([])
        else:
            documents[-1].append(token)
    return [document for document in documents if document]


def continuation_questions(
    documents: Sequence[Document], tokenizer: Tokenizer, shape: Shape, seed: str
) -> tuple[Question, ...]:
    """Which window comes next? At most `shape.questions`; fewer where the documents hold no more.

    A corpus with one long enough document takes its distractors from elsewhere in that document.
    """
    rng = random.Random(seed)

    def distractor(others: Sequence[Document], _answer: Document) -> Document:
        other = rng.choice(others)
        start = rng.randrange(len(other) - shape.answer_tokens + 1)
        return other[start : start + shape.answer_tokens]

    return _ask(documents, tokenizer, shape, rng, distractor)


def order_questions(documents: Sequence[Document], tokenizer: Tokenizer, shape: Shape, seed: str) -> tuple[Question, ...]:
    """In which order do the next tokens stand? At most `shape.questions`; fewer where the documents hold no more."""
    rng = random.Random(seed)

    def distractor(_others: Sequence[Document], answer: Document) -> Document:
        one, other = rng.sample(range(len(answer)), 2)
        swapped = list(answer)
        swapped[one], swapped[other] = answer[other], answer[one]
        return swapped

    return _ask(documents, tokenizer, shape, rng, distractor)


def _ask(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    shape: Shape,
    rng: random.Random,
    distractor: Callable[[Sequence[Document], Document], Document],
) -> tuple[Question, ...]:
    usable = [document for document in documents if len(document) >= shape.window_tokens]
    positions = [number % shape.choices for number in range(shape.questions)]
    rng.shuffle(positions)
    found: dict[tuple[int, int], Question] = {}
    for _ in range(_DRAWS_PER_QUESTION * shape.questions if usable else 0):
        if len(found) == shape.questions:
            break
        index = rng.randrange(len(usable))
        start = rng.randrange(len(usable[index]) - shape.window_tokens + 1)
        window = usable[index][start : start + shape.window_tokens]
        others = usable[:index] + usable[index + 1 :] or usable
        context, answer = window[: shape.context_tokens], window[shape.context_tokens :]
        draws = (distractor(others, answer) for _ in range(_DRAWS_PER_QUESTION * shape.choices))
        texts = list(itertools.islice(_choices(context, answer, draws, tokenizer), shape.choices))
        if len(texts) == shape.choices and (index, start) not in found:
            found[index, start] = _question(_decode(tokenizer, context), texts, positions[len(found)])
    return tuple(found.values())


def _question(context: str, texts: list[str], position: int) -> Question:
    """`texts`, of which the first is true, with the true one moved to `position`."""
    truth, *others = texts
    return Question(context=context, choices=(*others[:position], truth, *others[position:]), answer=position)


def _choices(context: Document, answer: Document, draws: Iterator[Document], tokenizer: Tokenizer) -> Iterator[str]:
    """Distinct texts of one length in tokens, the true one first; nothing where the window itself is no text."""
    before, truth = _decode(tokenizer, context), _decode(tokenizer, answer)
    if not (_is_text(before) and _is_text(truth)):
        return
    length = _length(tokenizer, before + truth)
    seen = {truth}
    yield truth
    for draw in draws:
        text = _decode(tokenizer, draw)
        if text not in seen and _is_text(text) and _length(tokenizer, before + text) == length:
            seen.add(text)
            yield text


def _decode(tokenizer: Tokenizer, tokens: Document) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=False))


def _length(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def _is_text(text: str) -> bool:
    return _REPLACEMENT not in text and not text.isspace() and bool(text)
