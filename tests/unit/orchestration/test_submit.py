"""What a person may ask for, and what is refused before anything runs."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from prunella.config_text import to_toml
from prunella.errors import ConfigError
from prunella.orchestration import closing
from prunella.orchestration.submit import Submission, find_experiment, open_experiment, resolve
from prunella.recipes import RECIPES, recipe
from unit.orchestration.story import Story


@pytest.fixture
def fleet_file(tmp_path: Path) -> str:
    path = tmp_path / "fleet.yaml"
    path.write_text("nodes:\n- {name: alpha}\n- {name: beta}\n- {name: gamma, role: spare}\n")
    return str(path)


# ------------------------------------------------------------------------------------------------ opening


def test_options_lie_over_the_file_and_single_settings_over_both(root: str, tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text("seed = 1\nsteps_per_segment = 11\n[optim]\nlearning_rate = 0.5\n")

    config = resolve(
        Submission(root=root, recipe="tiny_dense", config_file=str(file), seed=2, assignments=("optim.learning_rate=0.25",))
    )

    assert (config.recipe, config.seed, config.steps_per_segment) == ("tiny_dense", 2, 11)
    assert config.optim.learning_rate == 0.25


def test_a_file_names_the_recipe_that_it_lies_over(root: str, tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text('recipe = "tiny_dense"\nseed = 3\n')

    config = resolve(Submission(root=root, config_file=str(file)))

    assert config == dataclasses.replace(recipe("tiny_dense"), seed=3)


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_written_out_is_itself_again(root: str, tmp_path: Path, name: str) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(to_toml(recipe(name)))

    assert resolve(Submission(root=root, config_file=str(file))) == recipe(name)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"recipe": "tiny_moe"}, "--recipe tiny_moe: .*experiment.toml says recipe = 'tiny_dense'; leave one of them out"),
        ({"assignments": ("recipe=tiny_moe",)}, "--set recipe=tiny_moe: .* give it with --recipe"),
    ],
)
def test_a_recipe_that_contradicts_the_file_is_refused(root: str, tmp_path: Path, asked: dict[str, Any], words: str) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text('recipe = "tiny_dense"\n')

    with pytest.raises(ConfigError, match=words):
        resolve(Submission(root=root, config_file=str(file), **asked))


def test_the_corpus_of_a_place_lies_over_the_recipe_and_under_the_file(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNELLA_DATA", "/data/books '/data/with space/*.txt'")
    file = tmp_path / "experiment.toml"
    file.write_text('[data]\ninputs = ["/data/web.jsonl"]\n')

    assert resolve(Submission(root=root)).data.inputs == ("/data/books", "/data/with space/*.txt")
    assert resolve(Submission(root=root, config_file=str(file))).data.inputs == ("/data/web.jsonl",)


def test_an_experiment_keeps_its_corpus_when_the_place_gets_another(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_experiment(Submission(root=root, experiment="demo", segments=2)).experiment()
    monkeypatch.setenv("PRUNELLA_DATA", "/no/such/corpus")

    assert open_experiment(Submission(root=root, experiment="demo", segments=2)).experiment() == opened


def test_a_corpus_that_nobody_can_read_is_refused(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELLA_DATA", "/data/'books")

    with pytest.raises(ConfigError, match=r"PRUNELLA_DATA: expected paths"):
        resolve(Submission(root=root))


def test_an_opened_experiment_records_everything_it_depends_on(root: str) -> None:
    ledger = open_experiment(Submission(root=root, experiment="demo", segments=2, faults=("kill:rank=1,step=3",)))

    record = ledger.experiment()
    assert record.config["segments"] == 2
    assert record.faults == ("kill:rank=1,step=3",)
    assert {"python", "torch", "prunella", "system"} <= set(record.versions)


def test_a_root_without_experiments_gets_one_named_experiment(root: str) -> None:
    assert open_experiment(Submission(root=root)).name == "experiment"


def test_a_relative_fleet_file_is_recorded_where_every_process_finds_it(
    root: str, fleet_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(fleet_file).parent)

    ledger = open_experiment(Submission(root=root, fleet="fleet.yaml"))

    assert ledger.config().fleet == fleet_file


# ------------------------------------------------------------------------------------------------ again


def test_the_same_submission_continues(root: str) -> None:
    submission = Submission(root=root, recipe="tiny_dense", seed=8, faults=("kill:rank=1,step=3",))
    opened = open_experiment(submission).experiment()

    assert open_experiment(submission).experiment() == opened


def test_a_name_alone_continues_whatever_it_was_opened_with(root: str) -> None:
    opened = open_experiment(Submission(root=root, experiment="demo", recipe="tiny_dense", seed=8)).experiment()

    assert open_experiment(Submission(root=root, experiment="demo")).experiment() == opened


def test_fields_left_empty_keep_what_the_experiment_was_opened_with(root: str) -> None:
    opened = open_experiment(Submission(root=root, recipe="tiny_dense", seed=8, segments=2)).experiment()

    assert open_experiment(Submission(root=root, segments=2)).experiment() == opened


def test_another_configuration_is_an_error_that_shows_the_difference(root: str) -> None:
    open_experiment(Submission(root=root, seed=7, assignments=("optim.learning_rate=0.5",)))

    with pytest.raises(ConfigError) as raised:
        open_experiment(Submission(root=root, seed=8, assignments=("optim.learning_rate=0.25",)))

    assert "seed: 7 -> 8" in str(raised.value)
    assert "optim.learning_rate: 0.5 -> 0.25" in str(raised.value)
    assert "take another --experiment or --root" in str(raised.value)


def test_other_faults_are_an_error_that_shows_them(root: str) -> None:
    open_experiment(Submission(root=root, faults=("kill:rank=1,step=3",)))

    with pytest.raises(ConfigError, match=r"faults: \['kill:rank=1,step=3'\] -> \['nan:rank=0,step=4'\]"):
        open_experiment(Submission(root=root, faults=("nan:rank=0,step=4",)))


def test_the_command_that_opened_an_experiment_continues_it_after_an_extension(root: str) -> None:
    submission = Submission(root=root, segments=2)
    closing.extend(open_experiment(submission), 4, "more data came")

    as_opened = open_experiment(submission)
    as_extended = open_experiment(Submission(root=root, segments=4))

    assert as_opened.config().segments == as_extended.config().segments == 4


def test_a_number_of_segments_nobody_recorded_is_refused(root: str) -> None:
    open_experiment(Submission(root=root, segments=2))

    with pytest.raises(ConfigError, match="segments: 2 -> 3"):
        open_experiment(Submission(root=root, segments=3))


# ------------------------------------------------------------------------------------------------ refused

REFUSED = [
    (Submission(root="", recipe="tiny_mo"), "tiny_moe"),
    (Submission(root="", config_file="/no/such/file.toml"), "no such configuration file"),
    (Submission(root="", assignments=("optim.learning_rat=1",)), "did you mean"),
    (Submission(root="", assignments=("seed",)), "expected key=value"),
    (Submission(root="", assignments=("seed=eight",)), "expected int"),
    (Submission(root="", assignments=("parallel.expert_parallel=3",)), "expected a divisor of the world size 2"),
    (Submission(root="", segments=0), "segments: expected at least 1"),
    (Submission(root="", schedule="hourly"), "manual, continuous or cron:EXPR"),
    (Submission(root="", schedule="cron:every now and then"), "not a cron expression"),
    (Submission(root="", fleet="/no/such/fleet.yaml"), "no such fleet file"),
    (Submission(root="", experiment="../escape"), "expected 1 to 63 lower-case letters"),
    (Submission(root="", faults=("explode:rank=1",)), "unknown fault 'explode'"),
    (Submission(root="", faults=("kill:rank=7,step=3",)), "there is no rank 7"),
    (Submission(root="", faults=("kill:rank=1,step=9999",)), "there is no step 9999"),
    (Submission(root="", faults=("bad-node:node=node-9,segment=0",)), "there is no node 'node-9'"),
    (Submission(root="", faults=("bad-node:node=node-1,segment=3",)), "there is no segment 3"),
    (Submission(root="", faults=("corrupt-checkpoint:step=3",)), "no candidate is written at step 3"),
    (Submission(root="", faults=("kill:rank=1,step=3", "kill:rank=1,step=3")), "asked for twice"),
]


@pytest.mark.parametrize(("submission", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_cannot_be_meant_is_refused_and_nothing_is_written(submission: Submission, words: str, tmp_path: Path) -> None:
    root = str(tmp_path / "not-made")
    asked = Submission(**{name: getattr(submission, name) for name in submission.__slots__} | {"root": root})

    with pytest.raises(ConfigError) as raised:
        open_experiment(asked)

    assert words in str(raised.value)
    assert not Path(root).exists()


def test_a_fleet_that_is_too_small_is_refused(root: str, fleet_file: str) -> None:
    with pytest.raises(ConfigError, match="needs 4 nodes, the fleet has 3"):
        open_experiment(Submission(root=root, fleet=fleet_file, nodes=4))


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (
            "[{name: a, devices: 2}, {name: b, devices: 2}, {name: c, role: spare}]",
            "any 2 of these 3 may train, found a: 2, b: 2, c: 1",
        ),
        ("[{name: a, devices: 3}, {name: b, devices: 2}]", "batch.global_sequences: expected a multiple of the 5 ranks"),
    ],
)
def test_a_fleet_whose_teams_could_not_train_alike_is_refused(root: str, tmp_path: Path, nodes: str, words: str) -> None:
    path = tmp_path / "unequal.yaml"
    path.write_text(f"nodes: {nodes}\n")

    with pytest.raises(ConfigError, match=words):
        open_experiment(Submission(root=root, fleet=str(path)))


def test_a_fault_is_possible_or_not_by_the_fleet_of_the_file(root: str, fleet_file: str) -> None:
    open_experiment(Submission(root=root, fleet=fleet_file, faults=("bad-node:node=gamma,segment=0",)))

    with pytest.raises(ConfigError, match="the fleet has alpha, beta, gamma"):
        open_experiment(Submission(root=root, experiment="two", fleet=fleet_file, faults=("bad-node:node=node-1,segment=0",)))


# ------------------------------------------------------------------------------------------------ finding


def test_the_only_experiment_needs_no_name(root: str) -> None:
    Story(root=root, name="alpha").begin()

    assert find_experiment(root, None).name == "alpha"
    assert open_experiment(Submission(root=root)).name == "alpha"


def test_among_several_one_must_be_named_and_they_are_listed(root: str) -> None:
    for name in ("beta", "alpha"):
        Story(root=root, name=name).begin()

    for ask in (lambda: find_experiment(root, None), lambda: open_experiment(Submission(root=root))):
        with pytest.raises(ConfigError, match=r"several experiments here \(alpha, beta\); choose one with --experiment NAME"):
            ask()
    assert find_experiment(root, "beta").name == "beta"


def test_a_name_that_is_not_there_is_refused_with_those_that_are(root: str) -> None:
    Story(root=root, name="alpha").begin()

    with pytest.raises(ConfigError, match=r"no such experiment under .*; it holds alpha"):
        find_experiment(root, "alhpa")


def test_a_root_without_experiments_says_how_to_start_one(root: str) -> None:
    with pytest.raises(ConfigError, match=r"start .* with `prunella run --root"):
        find_experiment(root, None)
