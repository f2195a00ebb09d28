"""A configuration is refused here, once, with advice; what passes is exactly what was asked for."""

import tomllib
from pathlib import Path

import pytest

from prunella import codec, config_text
from prunella.config import Config, ModelConfig, TrainingConfig
from prunella.errors import ConfigError


def test_the_defaults_survive_the_round_trip_with_one_digest() -> None:
    mapping = config_text.to_mapping(Config())

    copy = config_text.from_mapping(mapping, "test")

    assert copy == Config()
    assert codec.digest(copy) == codec.digest(Config()) == codec.digest(mapping)


def test_whole_numbers_given_for_floats_do_not_change_the_digest() -> None:
    given = Config(training=TrainingConfig(hang_floor_s=15, wall_clock_limit_s=600))

    recorded = config_text.from_mapping(config_text.to_mapping(given), "test")

    assert codec.digest(recorded) == codec.digest(given)


def test_the_experiment_spans_all_its_segments() -> None:
    assert Config(segments=4, steps_per_segment=10).total_steps == 40


@pytest.mark.parametrize(
    ("assignment", "read"),
    [
        ("seed=8", lambda c: c.seed == 8),
        ("optim.learning_rate=1e-3", lambda c: c.optim.learning_rate == 1e-3),
        ("optim.learning_rate = 1", lambda c: c.optim.learning_rate == 1.0),
        ("schedule=continuous", lambda c: c.schedule == "continuous"),
        ('schedule="continuous"', lambda c: c.schedule == "continuous"),
        ("schedule=cron:*/5 * * * *", lambda c: c.schedule == "cron:*/5 * * * *"),
        ("schedule=cron:0 = 1", lambda c: c.schedule == "cron:0 = 1"),
        ("model.top_k=[1]", lambda c: c.model.top_k == (1,)),
        ('data.inputs=["a", "b"]', lambda c: c.data.inputs == ("a", "b")),
        ("training.wall_clock_limit_s=600", lambda c: c.training.wall_clock_limit_s == 600.0),
        ("data.max_bytes=none", lambda c: c.data.max_bytes is None),
        ("model.qk_norm=false", lambda c: c.model.qk_norm is False),
        ("optim.schedule=cosine", lambda c: c.optim.schedule == "cosine"),
    ],
)  # fmt: skip
def test_an_assignment_sets_its_key(assignment: str, read) -> None:  # type: ignore[no-untyped-def]
    assert read(config_text.override(Config(), [assignment]))


def test_the_last_of_two_assignments_wins_and_the_base_is_untouched() -> None:
    base = Config()

    changed = config_text.override(base, ("seed=1", "seed=2"))

    assert (changed.seed, base.seed) == (2, 7)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seed", "--set seed: expected key=value"),
        ("sead=8", "--set sead=8: unknown key 'sead'; did you mean 'seed'?"),
        ("optim.learning_rat=1", "unknown key 'optim.learning_rat'; did you mean 'learning_rate'?"),
        ("optym.learning_rate=1", "unknown key 'optym'; did you mean 'optim'?"),
        ("seed.deep=1", "unknown key 'seed'"),
        ("seed=eight", "--set.seed: expected int, found str 'eight'"),
        ("seed=1.5", "--set.seed: expected int, found float 1.5"),
        ("seed=none", "--set.seed: expected int, found nothing"),
        ("seed=-1", "seed: expected at least 0 and less than 2**63, found -1"),
        ("seed=9223372036854775808", "seed: expected at least 0 and less than 2**63, found 9223372036854775808"),
        ('data.inputs=["a", ""]', "data.inputs: expected the name of a file, glob or folder in each entry, found ['a', '']"),
        ('data.inputs=[" "]', "data.inputs: expected the name of a file, glob or folder in each entry, found [' ']"),
        ("model=3", "--set.model: expected a table, found int 3"),
        ("model.top_k=2", "--set.model.top_k: expected a list, found int 2"),
        ("optim.schedule=linear", "--set.optim.schedule: expected one of warmup_stable_decay, cosine, found str 'linear'"),
        ("optim.betas=[0.9,1.5]", "optim.betas: expected two numbers, from 0 to less than 1, found [0.9, 1.5]"),
        ("optim.eps=-1.0", "optim.eps: expected at least 0, found -1.0"),
        ("optim.min_learning_rate_ratio=nan", "optim.min_learning_rate_ratio: expected at least 0, found nan"),
        ("optim.min_learning_rate_ratio=1.5", "optim.min_learning_rate_ratio: expected at most 1, found 1.5"),
        ("evaluation.max_loss_rise_nats=inf", "evaluation.max_loss_rise_nats: expected at least 0, found inf"),
        ("tracking.uri=http://[x", "tracking.uri: expected an address such as http://HOST:PORT, found one that cannot be read"),
        ("optim.learning_rate=inf", "optim.learning_rate: expected more than 0, found inf"),
        ("parallel.threads_per_rank=0", "parallel.threads_per_rank: expected at least 1, found 0"),
        ("model.d_model=100", "model.d_model: expected a multiple of 8 (grouped_mm aligns rows to 16 bytes), found 100"),
        ("checkpoint.max_unsaved_steps=0", "checkpoint.max_unsaved_steps: expected at least 1, found 0"),
        ("training.wall_clock_limit_s=-1.0", "training.wall_clock_limit_s: expected at least 0, found -1.0"),
        ("checkpoint.max_norm_ratio=1.0", "checkpoint.max_norm_ratio: expected more than 1, found 1.0"),
        ("nodes=0", "nodes: expected at least 1, found 0"),
        ("schedule=hourly", "schedule: expected manual, continuous or cron:EXPR, found 'hourly'"),
    ],
)
def test_a_bad_assignment_is_refused_with_advice(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_text.override(Config(), [assignment])

    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_kv_heads": 0}, "model.n_kv_heads: expected at least 1, found 0"),
        ({"n_layers": -1}, "model.n_layers: expected at least 1"),
        ({"n_heads": 3, "n_kv_heads": 2}, "model.n_heads: expected a multiple of model.n_kv_heads, found 3"),
        ({"head_dim": 31}, "model.head_dim: expected an even number"),
        ({"vocab_size": 256}, "model.vocab_size: expected at least 257"),
        ({"top_k": (1, 2)}, "model.top_k: expected one entry, or one a layer"),
        ({"top_k": (9,)}, "model.top_k: expected between 1 and model.n_experts = 8"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig(**settings)  # type: ignore[arg-type]

    assert str(caught.value).startswith(message)


def test_active_experts_and_dense_layers_are_counted_per_layer() -> None:
    model = ModelConfig(n_layers=3, n_dense_layers=1, top_k=(1, 2, 4))

    assert [model.is_moe_layer(layer) for layer in range(3)] == [False, True, True]
    assert [model.top_k_at(layer) for layer in range(3)] == [1, 2, 4]
    assert not ModelConfig(n_experts=0).is_moe_layer(3)


def test_a_file_overrides_only_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text('seed = 3\n[model]\nn_layers = 2\n[data]\ninputs = ["corpus"]\n')

    read = config_text.over(config_text.override(Config(), ["model.d_model=64"]), config_text.parse_file(path), str(path))

    assert (read.seed, read.model.n_layers, read.model.d_model, read.data.inputs) == (3, 2, 64, ("corpus",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed = ", "not TOML"),
        (b"\xff\xfe", "not TOML"),
        (b"sead = 1", "experiment.toml: unknown key 'sead'; did you mean 'seed'?"),
        (b"[model]\nlayers = 1", "experiment.toml.model: unknown key 'layers'"),
        (b"seed = '1'", "experiment.toml.seed: expected int, found str '1'"),
    ],
)
def test_a_bad_file_is_refused_with_its_path(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "experiment.toml"
    path.write_bytes(content)

    with pytest.raises(ConfigError) as caught:
        config_text.over(Config(), config_text.parse_file(path), str(path))

    assert str(path) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(("name", "message"), [("absent.toml", "no such configuration file"), (".", "cannot be read")])
def test_a_file_that_cannot_be_opened_is_a_configuration_error(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_text.parse_file(tmp_path / name)


def test_the_difference_of_two_configurations_names_each_leaf_once() -> None:
    old = config_text.to_mapping(Config())
    new = config_text.to_mapping(config_text.override(Config(), ["seed=8", "model.top_k=[1]", "tracking.uri=http://x"]))

    assert config_text.difference(old, old) == []
    assert config_text.difference(old, new) == ["model.top_k: [2] -> [1]", "seed: 7 -> 8", "tracking.uri: None -> 'http://x'"]


def test_replace_leaves_out_what_was_not_given() -> None:
    assert config_text.replace(Config(), segments=5, nodes=None) == Config(segments=5)


def test_every_setting_is_printed_and_one_that_is_not_set_as_a_comment() -> None:
    lines = config_text.to_toml(Config()).splitlines()

    tables = [value if isinstance(value, dict) else {"": value} for value in config_text.to_mapping(Config()).values()]
    assert sum(" = " in line for line in lines) == sum(len(table) for table in tables)
    assert {"# fleet = none", "# uri = none", "seed = 7"} <= set(lines)
    assert config_text.from_mapping(tomllib.loads("\n".join(lines)), "printed") == Config()


def test_an_address_that_cannot_be_read_is_refused_without_quoting_it() -> None:
    with pytest.raises(ConfigError, match="not shown") as refused:
        config_text.override(Config(), ["tracking.uri=http://someone:hunter2@[x"])

    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("uri", ["http://someone:hunter2@tracking:5000", "postgresql://hunter2@db/mlflow"])
def test_a_password_in_the_configuration_is_refused_and_not_shown(uri: str) -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD, which never are") as refused:
        config_text.override(Config(), [f"tracking.uri={uri}"])

    assert "hunter2" not in str(refused.value)
