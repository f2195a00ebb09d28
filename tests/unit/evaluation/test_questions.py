from collections import Counter

import pytest
from tokenizers import Tokenizer

from prunella.evaluation.questions import (
    Question,
    Shape,
    continuation_questions,
    order_questions,
    shape_for,
    split_documents,
)

SHAPE = Shape(questions=60, choices=4, context_tokens=24, answer_tokens=8)
KINDS = pytest.mark.parametrize("ask", [continuation_questions, order_questions])


def _join(question: Question) -> str:
    return question.context + question.choices[question.answer]


@KINDS
def test_the_same_documents_and_seed_give_the_same_questions_and_another_seed_others(ask, documents, tokenizer) -> None:
    first = ask(documents, tokenizer, SHAPE, "7/data")

    assert ask(documents, tokenizer, SHAPE, "7/data") == first
    assert ask(documents, tokenizer, SHAPE, "8/data") != first


@KINDS
def test_the_true_answer_stands_in_the_text_after_its_context(ask, documents, tokenizer, texts) -> None:
    questions = ask(documents, tokenizer, SHAPE, "7")

    assert len(questions) == SHAPE.questions
    assert all(any(_join(question) in text for text in texts) for question in questions)


@KINDS
def test_the_true_answer_takes_every_position_equally_often_in_no_order(ask, documents, tokenizer) -> None:
    positions = [question.answer for question in ask(documents, tokenizer, SHAPE, "7")]

    assert Counter(positions) == {0: 15, 1: 15, 2: 15, 3: 15}
    assert positions != sorted(positions)
    assert positions != [0, 1, 2, 3] * 15


@KINDS
def test_the_choices_of_a_question_differ_and_are_equally_long_in_tokens(ask, documents, tokenizer: Tokenizer) -> None:
    for question in ask(documents, tokenizer, SHAPE, "7"):
        lengths = {len(tokenizer.encode(question.context + choice).ids) for choice in question.choices}

        assert len(set(question.choices)) == SHAPE.choices
        assert len(lengths) == 1


def test_distractors_of_a_continuation_come_from_other_documents(documents, tokenizer, texts) -> None:
    for question in continuation_questions(documents, tokenizer, SHAPE, "7"):
        own = next(text for text in texts if _join(question) in text)
        wrong = [choice for choice in question.choices if choice != question.choices[question.answer]]

        assert all(any(choice in text for text in texts if text is not own) for choice in wrong)


def test_choices_of_an_order_question_are_the_same_characters_rearranged(documents, tokenizer) -> None:
    for question in order_questions(documents, tokenizer, SHAPE, "7"):
        assert len({tuple(sorted(choice)) for choice in question.choices}) == 1


def test_a_single_document_is_enough(documents, tokenizer) -> None:
    questions = continuation_questions(documents[1:2], tokenizer, SHAPE, "7")

    assert len(questions) == SHAPE.questions


def test_a_small_corpus_gives_the_questions_it_has_without_repeating_one(documents, tokenizer) -> None:
    short = [documents[1][: SHAPE.window_tokens + 3]]

    questions = order_questions(short, tokenizer, SHAPE, "7")

    assert 1 <= len(questions) <= 4
    assert len({_join(question) for question in questions}) == len(questions)


def test_a_window_cut_inside_a_character_asks_nothing(tokenizer) -> None:
    halves = [tokenizer.encode("é").ids[:1] * 40]

    assert continuation_questions(halves, tokenizer, SHAPE, "7") == ()


def test_documents_too_short_ask_nothing(tokenizer) -> None:
    assert order_questions([[1, 2, 3]], tokenizer, SHAPE, "7") == ()


def test_a_stream_splits_into_documents_at_end_marks() -> None:
    assert split_documents([0, 5, 6, 0, 0, 7, 0], end_of_text=0) == [[5, 6], [7]]


@pytest.mark.parametrize(("seq_len", "context", "answer"), [(4096, 64, 16), (128, 64, 16), (32, 16, 8), (8, 4, 4)])
def test_questions_fit_the_model(seq_len: int, context: int, answer: int) -> None:
    shape = shape_for(questions=1, choices=4, seq_len=seq_len)

    assert (shape.context_tokens, shape.answer_tokens) == (context, answer)
