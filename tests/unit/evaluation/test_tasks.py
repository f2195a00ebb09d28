import json
from pathlib import Path

import pytest

from prunella.errors import ConfigError
from prunella.evaluation import tasks
from prunella.evaluation.harness import CheckpointLM
from prunella.evaluation.questions import Question, Shape
from prunella.evaluation.scores import task_score, wilson_interval

SHAPE = Shape(questions=80, choices=4, context_tokens=24, answer_tokens=8)
MULTIPLE_CHOICE = """
task: local_quiz
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metadata: {{version: 3.0}}
"""
GENERATION = """
task: local_spelling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
PERPLEXITY = """
task: local_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metadata: {{version: 1.0}}
"""


@pytest.fixture
def adapt(tokenizer):
    def build(logits) -> CheckpointLM:
        return CheckpointLM(logits, tokenizer, seq_len=64, end_of_text=0, batch_size=16, seed=7, device="cpu")

    return build


@pytest.fixture
def task_file(tmp_path: Path):
    def write(template: str) -> str:
        data = tmp_path / "quiz.jsonl"
        rows = [{"question": f"{n} plus one is", "choices": ["more", "less"], "answer": n % 2} for n in range(5)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        path = tmp_path / "quiz.yaml"
        path.write_text(template.format(data=data))
        return str(path)

    return write


def _own(documents, tokenizer, *, few_shot: int = 0):
    return tasks.own_tasks(documents, tokenizer, SHAPE, few_shot=few_shot, seed=7, dataset="data")


def _scores(model: CheckpointLM, chosen):
    results = tasks.run_tasks(model, chosen, seed=7)
    return [
        task_score(task.task_name, results, chance=tasks.chance_level(task), batch_size=16, seed=7, dtype="float32")
        for task in chosen
    ]


def test_a_model_that_knows_nothing_scores_at_chance(adapt, uniform, documents, tokenizer) -> None:
    scores = _scores(adapt(uniform), _own(documents, tokenizer))

    assert [score.task for score in scores] == ["prunella_continuation", "prunella_order"]
    for score in scores:
        assert score.acc == score.chance == 0.25
        assert score.ci95[0] <= 0.25 <= score.ci95[1]


def test_a_model_that_knows_the_documents_by_heart_scores_near_one(adapt, memorised, documents, tokenizer) -> None:
    scores = _scores(adapt(memorised), _own(documents, tokenizer))

    assert all(score.acc > 0.9 for score in scores)


def test_a_score_holds_what_makes_it_repeatable(adapt, uniform, documents, tokenizer) -> None:
    score = _scores(adapt(uniform), _own(documents, tokenizer, few_shot=2))[0]

    assert (score.version, score.n, score.few_shot) == (tasks.VERSION, SHAPE.questions, 2)
    assert (score.batch_size, score.seed, score.dtype) == (16, 7, "float32")
    assert score.ci95 == wilson_interval(score.acc, score.n)


def test_few_shot_examples_are_never_asked(documents, tokenizer) -> None:
    for task in _own(documents, tokenizer, few_shot=3):
        asked = {(row["context"], row["answer"]) for row in task.eval_docs}
        shown = {(row["context"], row["answer"]) for row in task.fewshot_docs()}

        assert len(shown) == 3
        assert not asked & shown


def test_text_that_looks_like_a_template_or_a_number_is_asked_as_it_stands(adapt, uniform) -> None:
    question = Question(context="{{ answer }} 12", choices=("7", "8", "{{ context }}"), answer=2)
    task = tasks.multiple_choice_task("quiz", [question])

    tasks.run_tasks(adapt(uniform), [task], seed=7)

    assert [instance.args for instance in task.instances] == [(question.context, choice) for choice in question.choices]


def test_too_little_held_out_text_is_an_error_that_says_what_to_do(tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"expected 80 questions .* found 0 .* data.heldout_fraction"):
        _own([[1, 2, 3]], tokenizer)


@pytest.mark.parametrize(
    ("template", "name", "version", "chance"),
    [(MULTIPLE_CHOICE, "local_quiz", "3.0", 0.5), (GENERATION, "local_spelling", "1.0", 0.0)],
)
def test_any_task_of_the_harness_runs_from_local_data(adapt, uniform, task_file, template, name, version, chance) -> None:
    chosen = tasks.named_tasks([task_file(template)], few_shot=0)

    [score] = _scores(adapt(uniform), chosen)

    assert (score.task, score.version, score.n, score.chance) == (name, version, 5, chance)


def test_a_perplexity_task_runs_but_has_no_accuracy_to_store(adapt, uniform, task_file) -> None:
    chosen = tasks.named_tasks([task_file(PERPLEXITY)], few_shot=0)

    with pytest.raises(ConfigError, match=r"local_text.*expected one of acc"):
        _scores(adapt(uniform), chosen)


def test_the_number_of_shots_is_ours_only_where_the_task_names_none(task_file, tmp_path) -> None:
    silent = tasks.named_tasks([task_file(MULTIPLE_CHOICE)], few_shot=2)
    own = tasks.named_tasks([task_file(MULTIPLE_CHOICE + "num_fewshot: 1\n")], few_shot=2)

    assert silent[0].get_config("num_fewshot") == 2
    assert own[0].get_config("num_fewshot") == 1


def test_a_task_without_local_data_is_an_error_that_names_it(task_file, tmp_path) -> None:
    path = task_file(MULTIPLE_CHOICE)
    (tmp_path / "quiz.jsonl").unlink()

    with pytest.raises(ConfigError, match=r"quiz.yaml.*not on this machine.*never downloads"):
        tasks.named_tasks([path], few_shot=0)


@pytest.mark.slow  # the harness takes 11 s to index its own tasks
@pytest.mark.parametrize(("name", "words"), [("hellaswig", "did you mean 'hellaswag'"), ("hellaswag", "not on this machine")])
def test_a_task_of_the_harness_that_cannot_run_here_is_an_error(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tasks.named_tasks([name], few_shot=0)
