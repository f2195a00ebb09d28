"""Slots and deadlines as Airflow's own scheduler understands them, on a database of its own (scheduler_job.py)."""

import dataclasses
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e.live_airflow import downgrade
from prunella.errors import Cause
from prunella.orchestration import airflow_home, live
from prunella.orchestration.notifier import WEBHOOK
from prunella.orchestration.scheduling import DEADLINE_S, NODE_POOL, POOL_SLOTS
from prunella.records import Action
from unit.orchestration.mailbox import Mailbox
from unit.orchestration.story import CONFIG, Story, incident

JOB = Path(__file__).with_name("scheduler_job.py")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the migrated database is kept: not where the user's is."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


def answer_of(home: Path, command: list[str], **settings: str) -> dict[str, Any]:
    """What a program prints after FOUND, with an Airflow of its own."""
    environment = {**os.environ, **airflow_home.environment(home), **settings}
    answer = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    line = next(line for line in answer.stdout.splitlines() if line.startswith("FOUND "))
    return json.loads(line.removeprefix("FOUND "))


@dataclass(frozen=True)
class Scheduled:
    """What the scheduler decided, and what was posted meanwhile."""

    home: Path
    found: dict[str, Any]
    letters: list[dict[str, Any]]

    @property
    def turns(self) -> dict[str, list[str]]:
        return self.found["turns"]

    def about(self, occasion: str) -> list[dict[str, Any]]:
        return [letter for letter in self.letters if letter["occasion"] == occasion]


@pytest.fixture(scope="module")
def with_settings(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Scheduled:
    """Three slots for three nodes, and a deadline that has passed at once."""
    home, mailbox = tmp_path_factory.mktemp("home"), Mailbox()
    airflow_home.prepare(home)
    airflow_home.make_pool(NODE_POOL, 3, airflow_home.environment(home))
    settings = {POOL_SLOTS: "3", DEADLINE_S: "0.001", WEBHOOK: mailbox.address}
    found = answer_of(home, [str(JOB), "nodes"], **settings, AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION="false")
    mailbox.server.shutdown()
    return Scheduled(home=home, found=found, letters=mailbox.letters)


@pytest.fixture(scope="module")
def without_settings(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Scheduled:
    home = tmp_path_factory.mktemp("home")
    airflow_home.prepare(home)
    found = answer_of(home, [str(JOB), "nodes"], AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION="false")
    return Scheduled(home=home, found=found, letters=[])


def test_two_experiments_on_one_fleet_never_work_on_its_nodes_at_once(with_settings: Scheduled) -> None:
    assert with_settings.turns["the newer trains, the older wants to gate"] == []
    assert with_settings.turns["the newer trains, the older wants to train"] == []
    assert with_settings.turns["the newer has trained, the older wants to train"] == ["a:train_segment"]


def test_what_was_gated_trains_before_another_gates(with_settings: Scheduled) -> None:
    assert with_settings.turns["the older wants to gate, the newer to train"] == ["b:train_segment"]


def test_a_sweep_never_works_on_a_node_beside_an_experiment_and_goes_after_it(with_settings: Scheduled) -> None:
    assert with_settings.turns["one slot is left, the experiment and the sweep want to gate"] == ["a:gate_node"]
    assert with_settings.turns["the sweep gates, the experiment wants to train"] == []
    assert with_settings.turns["the experiment trains, the sweep wants to gate"] == []
    assert with_settings.turns["the experiment has trained, the sweep wants to gate"] == ["sweep:gate_node"]


def test_without_slots_nobody_waits_for_a_node(without_settings: Scheduled) -> None:
    assert without_settings.turns["the newer trains, the older wants to train"] == ["a:train_segment"]
    assert without_settings.turns["the experiment trains, the sweep wants to gate"] == ["sweep:gate_node"]
    assert without_settings.found["deadlines"] == 0


def test_a_segment_that_missed_its_deadline_is_told_to_the_webhook(with_settings: Scheduled) -> None:
    (letter,) = with_settings.about("late")

    assert with_settings.found["deadlines"] == 2
    assert with_settings.found["missed"] == {
        "trigger": "airflow.triggers.callback.CallbackTrigger",
        "states": ["running", "success"],
    }
    assert (letter["run_id"], letter["dag_id"]) == ("a__seg-0000__r0", "pretrain_segment")


def test_a_run_that_failed_is_told_to_the_webhook(with_settings: Scheduled) -> None:
    (letter,) = with_settings.about("failed")

    assert (letter["run_id"], letter["dag_id"]) == ("b__seg-0000__r0", "pretrain_segment")


def test_a_database_that_is_a_revision_older_is_migrated_when_airflow_is_started(cache: Path, tmp_path: Path) -> None:
    settings = live.settings_for(tmp_path / "up", with_mlflow=False)
    live.start(settings)
    head, older = downgrade(live.environment(settings))
    before = revision_of(settings.home)

    live.start(settings)

    assert before == older
    assert revision_of(settings.home) == head


def revision_of(home: Path) -> str:
    with closing(sqlite3.connect(home / "airflow.db")) as database:
        [(revision,)] = database.execute("select version_num from alembic_version")
    return revision


def test_a_pool_that_is_there_keeps_its_size(with_settings: Scheduled) -> None:
    airflow_home.make_pool(NODE_POOL, 5, airflow_home.environment(with_settings.home))

    with closing(sqlite3.connect(with_settings.home / "airflow.db")) as database:
        assert dict(database.execute("select pool, slots from slot_pool")) == {"default_pool": 128, NODE_POOL: 3}


def test_a_quiet_run_is_taken_up_again_only_once_airflow_has_let_it_go(cache: Path, tmp_path: Path) -> None:
    story = Story(root=str(tmp_path / "root"), config=dataclasses.replace(CONFIG, schedule="continuous")).begin()
    story.open_attempt(story.open_run(0), 0)
    airflow_home.prepare(tmp_path / "home")

    found = answer_of(tmp_path / "home", [str(JOB), "advance", story.root], AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION="false")

    first, second = "demo__seg-0000__r0", "demo__seg-0000__r1"
    assert found == {
        "in hand": [first],
        "let go": [first, second],
        "on its way": [first, second],
        "took nothing up": [first, second, f"{second}-1"],
    }


@pytest.mark.parametrize(
    ("cause", "run", "close", "following", "occasions"),
    [
        (Cause.FENCED, "success", "skipped", "skipped", []),
        (Cause.PROCESS_CRASH, "failed", "failed", "upstream_failed", ["failed"]),
    ],
)
def test_a_run_that_another_took_over_is_not_red_and_pages_nobody(
    cache: Path, tmp_path: Path, cause: Cause, run: str, close: str, following: str, occasions: list[str]
) -> None:
    story = Story(root=str(tmp_path / "root")).begin()
    opened = story.open_run()
    story.prepare_data(of=opened)
    story.decide(story.open_attempt(opened), Action.STOP, incidents=(incident(cause, Action.STOP),))
    airflow_home.prepare(tmp_path / "home")
    mailbox = Mailbox()

    settings = {WEBHOOK: mailbox.address, "PRUNELLA_PYTHON": "true"}  # publishes nothing
    found = answer_of(tmp_path / "home", [str(JOB), "close", story.root, opened.run_id], **settings)
    mailbox.server.shutdown()

    assert found == {"run": run, "close_segment": close, "continue_experiment": following}
    assert [letter["occasion"] for letter in mailbox.letters] == occasions


def test_run_without_a_scheduler_leaves_slots_and_deadline_out(cache: Path, tmp_path: Path) -> None:
    program = (
        "import json, pathlib, sys\n"
        "from prunella.orchestration.run import _load_dag\n"
        "dag = _load_dag(pathlib.Path(sys.argv[1]))\n"
        "pools = sorted({task.pool for task in dag.tasks})\n"
        "print('FOUND ' + json.dumps({'pools': pools, 'has_deadline': dag.deadline is not None}))\n"
    )

    found = answer_of(tmp_path, ["-c", program, str(tmp_path)], **{POOL_SLOTS: "3", DEADLINE_S: "60"})

    assert found == {"pools": ["default_pool"], "has_deadline": False}
