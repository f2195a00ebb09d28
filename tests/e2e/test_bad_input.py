"""Bad input: one clear line that names the next step, exit code 2, nothing written; all before Airflow is started."""

import pickle
import shutil
from pathlib import Path

import pytest

from e2e.campaign import Campaign, causes
from prunella.errors import ConfigError
from prunella.orchestration.airflow_operators import submission_from
from prunella.orchestration.submit import open_experiment

CHECKPOINTS = "experiments/experiment/checkpoints"
FIRST, LAST = f"{CHECKPOINTS}/0000-00-0001", f"{CHECKPOINTS}/0001-00-0001"


# ------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("optim.lerning_rate=1", "unknown key 'optim.lerning_rate'; did you mean 'learning_rate'?"),
        ("optim.learning_rate=fast", "optim.learning_rate: expected float, found str 'fast'"),
        ("optim", "expected key=value, for example --set optim.learning_rate=1e-3"),
        ("batch.global_sequences=5", "expected a multiple of the 2 ranks, found 5; change it, the nodes or their devices"),
        ("model.vocab_size=100", "model.vocab_size: expected at least 257"),
        ('data.inputs=["/nowhere/corpus.txt"]', "no such file or folder (working folder"),
        ('data.inputs=["/nowhere/*.txt"]', "no file matches this glob"),
        ('data.tokenizer="/nowhere/tokenizer.json"', "no such file; give a tokenizer.json, or none to train one"),
    ],
)
def test_setting_that_cannot_be_meant_is_refused(campaign: Campaign, assignment: str, expected: str) -> None:
    assert expected in refusal(campaign, "--set", assignment)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[optim]\nlerning_rate = 1.0", "unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        ('segments = "two"', "segments: expected int, found str 'two'"),
        ("model = 3", "model: expected a table, found int 3"),
        ("segments = ", "not TOML"),
    ],
)
def test_file_that_cannot_be_meant_is_refused_with_its_name(campaign: Campaign, text: str, expected: str) -> None:
    campaign.folder.mkdir()
    path = campaign.folder / "wrong.toml"
    path.write_text(text)

    line = refusal(campaign, "--config", str(path))

    assert line.startswith(f"prunella: {path}")
    assert expected in line


def test_missing_file_is_refused_with_a_way_to_get_one(campaign: Campaign) -> None:
    line = refusal(campaign, "--config", "/nowhere/experiment.toml")

    assert "no such configuration file; `prunella recipe show tiny_moe --toml` prints one" in line


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("set", ["optim.lerning_rate=1"], "unknown key"),
        ("recipe", "tiny_mouse", "expected one of tiny_moe"),
        ("schedule", "cron:every morning", "every morning"),
        ("faults", ["kill:rank=9,step=1"], "there is no rank 9; ranks are 0 to 1"),
        ("root", "gs://bucket/run", "gs roots are not supported; give a local folder or s3://BUCKET/PREFIX"),
    ],
)
def test_form_that_cannot_be_meant_is_refused(tmp_path: Path, field: str, value: object, expected: str) -> None:
    params = {"root": str(tmp_path / "root"), "experiment": "experiment", "recipe": "tiny_moe"}

    with pytest.raises(ConfigError, match=expected):
        open_experiment(submission_from({**params, field: value}))

    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ corpus, fleet, root


def test_corpus_without_text_is_refused(campaign: Campaign, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "empty.txt").touch()

    line = refusal(campaign, "--set", f'data.inputs=["{folder}"]')

    assert "expected files with text, found 1 files, none of which" in line


@pytest.mark.slow
def test_corpus_whose_text_is_not_enough_stops_the_segment_and_says_so(campaign: Campaign, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("one document alone")

    done = campaign.run("--set", f'data.inputs=["{corpus}"]', "--set", "data.on_bad_input=error")

    assert done.returncode == 1
    assert "expected at least 2 documents with text" in done.stderr.splitlines()[-1]
    assert causes(campaign.summary()) == [("config_error", "stop")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nodes:\n- {name: a}\n- {name: b}\n", "needs 3 nodes, the fleet has 2 (a, b); add nodes to the file or lower --nodes"),
        ("nodes: [a, b\n", "not YAML"),
        ("nodes:\n- {name: a, gpus: 3}\n", "unknown key 'gpus'; known: devices, name, role"),
        ("nodes:\n- {name: a}\n- {name: a}\n- {name: b}\n", "node 'a' is listed twice"),
        ("", "not a fleet file: expected `nodes:`"),
    ],
)
def test_fleet_that_cannot_train_is_refused(campaign: Campaign, tmp_path: Path, text: str, expected: str) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(text)

    assert expected in refusal(campaign, "--nodes", "3", "--fleet", str(fleet), "--set", "batch.global_sequences=12")


def test_root_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for root in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        assert "cannot be made a folder" in refusal(Campaign(tmp_path), "--root", str(root))


def test_another_configuration_on_an_existing_root_is_refused_and_shows_the_difference(tmp_path: Path) -> None:
    params = {"root": str(tmp_path / "root"), "experiment": "experiment", "recipe": "tiny_moe", "seed": 7}
    open_experiment(submission_from(params))
    before = sorted((tmp_path / "root").rglob("*"))

    done = Campaign(tmp_path).prunella("run", "--set", "seed=8", "--set", "optim.eps=1e-6")

    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == [
        "  optim.eps: 1e-08 -> 1e-06",
        "  seed: 7 -> 8",
        "take another --experiment or --root; `prunella extend` adds segments",
    ]
    assert sorted((tmp_path / "root").rglob("*")) == before


# ------------------------------------------------------------------------------------------------ checkpoints


class Hostile:
    """Unpickled, it leaves a file behind."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.evidence,)


def test_pickle_in_place_of_a_shard_is_refused_and_never_opened(campaign: Campaign, unbroken: Campaign) -> None:
    campaign.take_over(unbroken)
    evidence = campaign.folder / "owned"
    victim = next((campaign.root / LAST).glob("*.safetensors"))
    victim.write_bytes(pickle.dumps(Hostile(evidence)))

    for command in ("digest", "verify"):
        done = campaign.prunella("checkpoint", command)
        assert done.returncode == 2
        assert f"{victim.name} is damaged: expected" in only_line(done.stderr)
        assert "roll back to an older checkpoint" in done.stderr
    assert not evidence.exists()


def test_pickle_beside_the_shards_is_not_looked_at(campaign: Campaign, unbroken: Campaign) -> None:
    campaign.take_over(unbroken)
    evidence = campaign.folder / "owned"
    for name in (".metadata", "zzz.safetensors", "model.pt"):
        (campaign.root / LAST / name).write_bytes(pickle.dumps(Hostile(evidence)))

    digest = campaign.digest()

    assert digest == unbroken.digest()
    assert not evidence.exists()


@pytest.mark.slow
def test_foreign_checkpoint_is_revoked_and_rolled_back_with_the_unbroken_digest(campaign: Campaign, unbroken: Campaign) -> None:
    """Before the second segment, the checkpoint of the first is replaced by another experiment's of the same shapes."""
    stranger = Campaign(campaign.folder / "stranger")
    assert stranger.run("--segments", "1", "--set", "optim.eps=1e-6").returncode == 0
    campaign.take_over(unbroken)
    for gone in (f"{CHECKPOINTS}/0001-00-0000", LAST, "experiments/experiment/segments/0001", FIRST):
        shutil.rmtree(campaign.root / gone)
    shutil.copytree(stranger.root / FIRST, campaign.root / FIRST)

    refused = campaign.prunella("checkpoint", "verify")
    done = campaign.run()

    assert refused.returncode == 2
    assert "foreign: expected one written under the configuration of this experiment" in only_line(refused.stderr)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (campaign.root / FIRST / "revoked.json").exists()
    assert campaign.digest() == unbroken.digest()


# ------------------------------------------------------------------------------------------------ how


def refusal(campaign: Campaign, *options: str) -> str:
    """The one line with which `prunella run` refuses; nothing was written."""
    done = campaign.run(*options)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert not campaign.root.exists()
    return only_line(done.stderr)


def only_line(text: str) -> str:
    """The one line that a refusal consists of."""
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("prunella: ")
    return lines[0]
