"""The tasks of an evaluation, as lm-evaluation-harness runs them: our own offline ones, and any of its own by name.

Our own hold their questions in memory. A further task is a name the harness knows or the path of a task file (YAML); its data
must be on disk already. A task that declares its own number of shots keeps it, so that its score compares with published ones.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer

from prunella.codec import suggest
from prunella.errors import ConfigError
from prunella.evaluation.questions import (
    Document,
    Question,
    Shape,
    continuation_questions,
    order_questions,
)

logger = logging.getLogger(__name__)

#: Change it when the way questions are made changes: scores of two versions are never compared.
VERSION = "1.0"

_KINDS: dict[str, Callable[[Sequence[Document], Tokenizer, Shape, str], tuple[Question, ...]]] = {
    "prunella_continuation": continuation_questions,
    "prunella_order": order_questions,
}


def own_tasks(
    documents: Sequence[Document], tokenizer: Tokenizer, shape: Shape, *, few_shot: int, seed: int, dataset: str
) -> list[Task]:
    """Our offline tasks over held-out `documents`; the questions depend on seed and data set fingerprint only.

    Raises:
        ConfigError: the held-out documents are too few or too short for a single question.
    """
    wanted = dataclasses.replace(shape, questions=shape.questions + few_shot)
    tasks = []
    for name, ask in _KINDS.items():
        questions = ask(documents, tokenizer, wanted, f"{seed}/{dataset}/{name}")
        if len(questions) <= few_shot:
            raise ConfigError(
                f"evaluation.questions: expected {shape.questions} questions for {name}, found {len(questions)} in "
                f"{len(documents)} held-out documents, of which {few_shot} are few-shot examples; raise data.heldout_fraction, "
                "or set evaluation.questions=0 to go without"
            )
        if len(questions) < wanted.questions:
            logger.warning("questions_ran_out task=%s wanted=%d found=%d", name, wanted.questions, len(questions))
        tasks.append(multiple_choice_task(name, questions[few_shot:], examples=questions[:few_shot]))
    return tasks


def multiple_choice_task(name: str, questions: Sequence[Question], *, examples: Sequence[Question] = ()) -> Task:
    """A task of the harness that asks `questions`, with `examples` as the shots before each."""
    splits = {"test": _dataset(questions)} | ({"examples": _dataset(examples)} if examples else {})
    return ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": lambda **_: splits,
            "test_split": "test",
            "fewshot_split": "examples" if examples else None,
            "num_fewshot": len(examples),
            "output_type": "multiple_choice",
            # Functions, because the harness takes a string for a field name or a template and would expand the text.
            "doc_to_text": lambda question: question["context"],
            "doc_to_choice": lambda question: question["choices"],
            "doc_to_target": lambda question: question["answer"],
            "target_delimiter": "",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": VERSION},
        }
    )


def _dataset(questions: Sequence[Question]) -> datasets.Dataset:
    return datasets.Dataset.from_list(
        [{"context": item.context, "choices": list(item.choices), "answer": item.answer} for item in questions]
    )


def named_tasks(names: Sequence[str], *, few_shot: int) -> list[Task]:
    """The harness's own tasks, by name or path of a task file; a group stands for its members.

    Raises:
        ConfigError: no such task, or its data is not on this machine.
    """
    if not names:
        return []
    manager = _manager(include_defaults=not all(name.endswith((".yaml", ".yml")) for name in names))
    tasks = [task for name in names for task in _load(manager, name)]
    for task in tasks:
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=few_shot)
    return tasks


@functools.cache
def _manager(*, include_defaults: bool) -> TaskManager:
    """The harness's index of tasks. With its own it parses thousands of files (11 s on one core, measured 2026-11)."""
    return TaskManager(include_defaults=include_defaults)


def _load(manager: TaskManager, name: str) -> list[Task]:
    try:
        return list(manager.load([name])["tasks"].values())
    except KeyError as error:
        raise ConfigError(f"evaluation.tasks: no task {name!r}{suggest(name, manager.all_tasks)}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"evaluation.tasks: the data of task {name!r} is not on this machine ({error}); an evaluation never downloads: "
            "fetch it beforehand into the Hugging Face cache (HF_HOME), or name a task file that reads local data"
        ) from error


def run_tasks(model: LM, tasks: Sequence[Task], *, seed: int) -> Mapping[str, Any]:
    """What the harness says of `model` on `tasks`; its results by task, without bootstrapped errors."""
    for task in tasks:
        task.set_fewshot_seed(seed=seed)
    results: Mapping[str, Any] = evaluator.evaluate(
        lm=model,
        task_dict={"tasks": {task.task_name: task for task in tasks}, "groups": {}},
        bootstrap_iters=0,
        log_samples=False,
    )
    return results


def chance_level(task: Task) -> float:
    """Accuracy of a guess: the mean of 1/choices over the questions; 0 where there is nothing to choose from."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return 0.0
    questions = list(task.eval_docs)
    return sum(1 / len(task.doc_to_choice(question)) for question in questions) / len(questions)
