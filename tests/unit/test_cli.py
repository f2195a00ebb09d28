"""The command line as a person meets it: help, lists, and errors of one clear line with exit code 2."""

import re
import sys
from pathlib import Path

import pytest
import typer

from prunella.__main__ import EXIT_ERROR, main
from prunella.cli import app
from prunella.faults import KINDS
from prunella.orchestration.submit import find_experiment
from prunella.recipes import RECIPES
from unit import checkpoint_job as tiny
from unit.orchestration.story import DIGEST, Story, validation


class Prunella:
    """Runs a command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.err = ""

    def __call__(self, *arguments: str, expect: int = 0) -> str:
        """Standard output of a command that must end with exit code `expect`; standard error is in `err`."""
        self._monkeypatch.setattr(sys, "argv", ["prunella", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        found = self._capsys.readouterr()
        self.err = found.err
        assert (ended.value.code or 0) == expect, found
        return found.out


@pytest.fixture
def prunella(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Prunella:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("prunella.cli_options.out._width", 200)
    return Prunella(monkeypatch, capsys)


def commands(group: typer.core.TyperGroup, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], list[str]]]:
    """Every command, with the options it takes."""
    found = []
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found += commands(command, (*path, name))
        else:
            options = [parameter.opts[0] for parameter in command.params if parameter.param_type_name == "option"]
            found.append(((*path, name), options))
    return found


COMMANDS = commands(typer.main.get_command(app))


# ------------------------------------------------------------------------------------------------ help


def test_the_command_line_has_the_commands_it_promises() -> None:
    names = {" ".join(path) for path, _ in COMMANDS}

    promised = ["run", "trigger", "stage", "status", "stop", "resume", "extend", "report", "demo", "up"]
    assert names >= set(promised)
    assert names >= {f"checkpoint {name}" for name in ("list", "verify", "digest", "promote", "prune")}
    assert names >= {"node list", "node cordon", "node uncordon", "fault list", "recipe list", "recipe show"}


@pytest.mark.parametrize(("path", "options"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])
def test_help_of_every_command_says_what_it_does_and_lists_its_options(
    prunella: Prunella, path: tuple[str, ...], options: list[str]
) -> None:
    text = prunella(*path, "--help")

    assert re.search(rf"Usage: .* {' '.join(path)} ", text)
    assert [option for option in options if option not in text] == []


# ------------------------------------------------------------------------------------------------ lists


def test_the_faults_that_can_be_asked_for_are_listed(prunella: Prunella) -> None:
    text = prunella("fault", "list")

    assert all(f"{kind}:" in text for kind in KINDS)
    assert "storage-down:seconds=...,[step=...]" in text


def test_the_recipes_are_listed_one_a_line(prunella: Prunella) -> None:
    assert prunella("recipe", "list").split() == list(RECIPES)


def test_a_recipe_is_shown_with_its_numbers(prunella: Prunella) -> None:
    assert "parameters" in prunella("recipe", "show", "tiny_moe").lower()


@pytest.mark.parametrize("name", ["tiny_moe", "tiny_dense"])
def test_a_recipe_printed_as_toml_is_the_same_configuration_when_read_back(
    prunella: Prunella, name: str, tmp_path: Path, root: str
) -> None:
    from prunella.orchestration.submit import Submission, resolve
    from prunella.recipes import recipe

    file = tmp_path / "experiment.toml"
    file.write_text(prunella("recipe", "show", name, "--toml"))

    assert resolve(Submission(root=root, config_file=str(file))) == recipe(name)


def test_nodes_are_listed_cordoned_and_given_back(prunella: Prunella, root: str) -> None:
    Path(root).mkdir(exist_ok=True)
    fresh = prunella("node", "list", "--root", root)
    prunella("node", "cordon", "node-1", "--root", root, "--reason", "smells of smoke")
    cordoned = prunella("node", "list", "--root", root)
    prunella("node", "uncordon", "node-1", "--root", root, "--reason", "new fan")
    returned = prunella("node", "list", "--root", root)

    assert [line.count("new") for line in fresh.splitlines() if "node-" in line] == [1, 1, 1]
    assert re.search(r"node-1 .* cordoned .* operator .* smells of smoke", cordoned)
    assert re.search(r"node-1 .* returned .* operator .* new fan", returned)


def test_the_checkpoints_of_an_experiment_are_listed_with_what_became_of_them(prunella: Prunella, root: str) -> None:
    story = Story(root=root).begin()
    story.open_attempt(story.open_run())
    story.judge_checkpoint(story.candidate(5))
    story.candidate(10, index=1)

    text = prunella("checkpoint", "list", "--root", root)

    assert re.search(r"0000-00-0000 .* 5 .* verified", text)
    assert re.search(r"0000-00-0001 .* 10 .* candidate", text)


def test_the_status_of_a_fresh_experiment_is_shown(prunella: Prunella, root: str) -> None:
    Story(root=root).begin()

    assert "state" in prunella("status", "--root", root)
    assert '"incidents": []' in prunella("status", "--root", root, "--json")


# ------------------------------------------------------------------------------------------------ steering


def test_a_stop_and_its_taking_back_are_recorded(prunella: Prunella, root: str) -> None:
    Story(root=root).begin()
    told = prunella("stop", "--root", root, "--reason", "maintenance")
    is_stopped = find_experiment(root, None).is_stop_requested()
    told += prunella("resume", "--root", root)

    assert told.splitlines() == [
        "experiment 'demo' is to stop: a running attempt finishes its step, saves and closes",
        "experiment 'demo' may go on: run or trigger it again",
    ]
    assert is_stopped
    assert not find_experiment(root, None).is_stop_requested()


def test_an_experiment_is_extended_and_never_shortened(prunella: Prunella, root: str) -> None:
    Story(root=root).begin()

    told = prunella("extend", "--root", root, "--segments", "4")
    prunella("extend", "--root", root, "--segments", "3", expect=EXIT_ERROR)

    assert told == "experiment 'demo' has 4 segments in all: run or trigger it again to train the new ones\n"
    assert find_experiment(root, None).config().segments == 4
    assert prunella.err == "prunella: --segments 3: the experiment has 4; it can only be extended\n"


# ------------------------------------------------------------------------------------------------ errors

NEEDS_EXPERIMENT = [
    "status",
    "stop",
    "resume",
    "report",
    "publish",
    "checkpoint list",
    "checkpoint digest",
    "checkpoint verify",
    "checkpoint promote --reason accepted",
    "checkpoint prune",
]


@pytest.mark.parametrize("command", NEEDS_EXPERIMENT)
def test_a_root_without_experiments_is_one_clear_line(prunella: Prunella, command: str, root: str) -> None:
    Path(root).mkdir(exist_ok=True)

    prunella(*command.split(), "--root", root, expect=EXIT_ERROR)

    assert prunella.err == f"prunella: --root {root}: no experiment here; start one with `prunella run --root {root}`\n"


def test_a_root_that_is_not_there_is_one_clear_line_and_is_not_made(prunella: Prunella, tmp_path: Path) -> None:
    root = tmp_path / "nowhere"

    prunella("status", "--root", str(root), expect=EXIT_ERROR)

    assert prunella.err.startswith(f"prunella: --root {root}: no such folder")
    assert not root.exists()


def test_the_nodes_of_a_root_that_is_not_there_are_not_waited_for(prunella: Prunella, root: str) -> None:
    prunella("node", "list", "--root", f"{root}/typo", expect=EXIT_ERROR)

    assert prunella.err.endswith(f"no such folder; start an experiment with `prunella run --root {root}/typo`\n")


def test_among_several_experiments_one_must_be_named_and_they_are_listed(prunella: Prunella, root: str) -> None:
    for name in ("alpha", "beta"):
        Story(root=root, name=name).begin()

    prunella("checkpoint", "list", "--root", root, expect=EXIT_ERROR)

    assert prunella.err == (
        f"prunella: --root {root}: several experiments here (alpha, beta); choose one with --experiment NAME\n"
    )
    assert "name" in prunella("checkpoint", "list", "--root", root, "--experiment", "beta")


REFUSED = [
    (("run", "--recipe", "tiny_mo"), "did you mean 'tiny_moe'?"),
    (("run", "--config", "/no/such/file.toml"), "no such configuration file"),
    (("run", "--set", "sed=8"), "unknown key 'sed'"),
    (("run", "--set", "data.workers=0"), "data.workers: expected at least 1, found 0"),
    (("run", "--fault", "explode"), "unknown fault 'explode'"),
    (("run", "--fault", "kill:rank=9,step=1"), "there is no rank 9"),
    (("run", "--nodes", "2", "--fleet", "/no/such/fleet.yaml"), "no such fleet file"),
    (("run", "--experiment", "No Name"), "expected 1 to 63 lower-case letters"),
    (("node", "cordon", "node-77", "--reason", "gone"), "there is no node 'node-77'"),
    (("node", "uncordon", "node-1", "--reason", "fine"), "is new, not cordoned"),
    (("node", "cordon", "node-1", "--reason", " "), "every move needs a reason"),
    (("stage", "data_prep", "--request", "fleet/none.json"), "there is no such request"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=[" ".join(arguments) for arguments, _ in REFUSED])
def test_an_input_that_cannot_be_meant_is_one_clear_line(
    prunella: Prunella, arguments: tuple[str, ...], words: str, root: str
) -> None:
    Path(root).mkdir(exist_ok=True)

    prunella(*arguments, "--root", root, expect=EXIT_ERROR)

    assert prunella.err.startswith("prunella: ")
    assert prunella.err.count("\n") == 1
    assert words in prunella.err
    assert not (Path(root) / "experiments").exists()


def test_the_demonstration_refuses_a_cluster_before_it_makes_anything(
    prunella: Prunella, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNELLA_LAUNCH", "kubernetes")

    prunella("demo", "--dir", str(tmp_path / "demo"), expect=EXIT_ERROR)

    assert prunella.err == (
        "prunella: PRUNELLA_LAUNCH=kubernetes: the demonstration has three nodes, all on this machine; unset it\n"
    )
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("airflow", ["http://127.0.0.1:9", "127.0.0.1:8080"])
def test_an_airflow_that_does_not_answer_is_one_clear_line_before_anything_is_recorded(
    prunella: Prunella, tmp_path: Path, airflow: str
) -> None:
    root = tmp_path / "root"

    prunella("trigger", "--root", str(root), "--airflow", airflow, "--password", "secret", expect=EXIT_ERROR)

    assert prunella.err.startswith(f"prunella: expected an Airflow that answers at {airflow}, found: ")
    assert prunella.err.count("\n") == 1
    assert not root.exists()


def test_a_report_that_cannot_be_written_is_one_clear_line_and_leaves_nothing(
    prunella: Prunella, root: str, tmp_path: Path
) -> None:
    Story(root=root).begin()
    (Path(root) / "published").write_text("in the way")
    (tmp_path / "taken").mkdir()

    prunella("report", "--root", root, "--output", str(tmp_path / "taken"), expect=EXIT_ERROR)
    of_output = prunella.err
    prunella("report", "--root", root, expect=EXIT_ERROR)

    assert f"prunella: --output {tmp_path / 'taken'}: the report cannot be written there (Is a directory); name a" in of_output
    assert prunella.err.startswith(f"prunella: --root {root}: the report cannot be written there (File exists); name a file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root", "taken"]


def test_a_checkpoint_that_is_not_what_was_validated_is_one_clear_line_that_says_what_to_do(
    prunella: Prunella, tmp_path: Path
) -> None:
    ledger = tiny.make_experiment(tmp_path / "root")
    [ref] = tiny.make_checkpoints(ledger, tmp_path)
    ledger.put(ledger.verdict_key(ref.name), validation(ref))

    prunella("checkpoint", "verify", "--root", str(tmp_path / "root"), expect=EXIT_ERROR)

    assert f"checkpoint {ref.name}: expected the digest that validation recorded, {DIGEST}, found " in prunella.err
    assert prunella.err.endswith("verify an older one (`prunella checkpoint list`, then --step)\n")


def test_without_a_cluster_its_nodes_are_one_clear_line(
    prunella: Prunella, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))

    prunella("kubernetes", "nodes", "--root", root, expect=EXIT_ERROR)

    assert prunella.err.startswith("prunella: no cluster to talk to: ")
    assert prunella.err.count("\n") == 1


def test_a_root_of_another_kind_is_one_clear_line(prunella: Prunella) -> None:
    prunella("run", "--root", "gs://bucket/run", expect=EXIT_ERROR)

    assert (
        prunella.err
        == "prunella: --root gs://bucket/run: gs roots are not supported; give a local folder or s3://BUCKET/PREFIX\n"
    )


@pytest.mark.parametrize(
    "arguments", [("run",), ("run", "--root", "x", "--segments", "0"), ("stage", "paint"), ("checkpoint", "frobnicate")]
)
def test_a_command_line_that_does_not_parse_ends_with_the_same_code(prunella: Prunella, arguments: tuple[str, ...]) -> None:
    prunella(*arguments, expect=EXIT_ERROR)

    assert "Error" in prunella.err
