"""Each DAG file is a test: it imports, it documents itself, and it has exactly the edges of the graph.

Airflow is imported once, by the fixture of this module; no other module of the unit tests does.
"""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prunella.errors import ConfigError
from prunella.orchestration import graph
from prunella.orchestration.airflow_home import dags_folder
from prunella.orchestration.scheduling import NODE_POOL, on_all_nodes, segment_deadline
from prunella.orchestration.sweep import node_of, open_sweep
from prunella.records import Action
from unit.orchestration.story import Story, accept_evaluated

DAGS = dags_folder()
FILES = sorted(DAGS.glob("*.py"))
NAMES = [path.stem for path in FILES]
HEAVY = ("torch", "mlflow", "pandas", "boto3", "kfp")


@pytest.fixture(scope="module")
def bag() -> Any:
    """Airflow's own view of the DAG files."""
    from airflow.dag_processing.dagbag import DagBag

    return DagBag(dag_folder=str(DAGS))


def test_the_dag_files_are_where_airflow_is_told_to_look() -> None:
    assert NAMES == ["advance_experiments", "pretrain_segment", "promote_checkpoint", "sweep_fleet"]


def test_every_dag_file_imports_without_an_error(bag: Any) -> None:
    assert bag.import_errors == {}
    assert sorted(bag.dags) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_dag_carries_its_runbook(bag: Any, name: str) -> None:
    text = bag.dags[name].doc_md

    assert "## What it does" in text
    assert "## What pages a person" in text
    assert "## How to" in text


def test_every_task_belongs_to_prunella_on_airflows_pages(bag: Any) -> None:
    assert {task.owner for dag in bag.dags.values() for task in dag.tasks} == {"prunella"}


def test_every_task_has_airflow_mask_the_secrets_of_its_environment_before_it_runs(bag: Any) -> None:
    from prunella.orchestration.masking import mask_secrets

    tasks = [task for dag in bag.dags.values() for task in dag.tasks]

    hooks = {task.partial_kwargs["pre_execute"] if task.is_mapped else task._pre_execute_hook for task in tasks}
    assert hooks == {mask_secrets}


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_of_a_form_are_valid(bag: Any, name: str) -> None:
    bag.dags[name].params.validate()


def test_no_task_carries_a_copy_of_the_form(bag: Any) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    written = DagSerialization.to_dict(bag.dags["pretrain_segment"])["dag"]

    assert len(written["params"]) == len(bag.dags["pretrain_segment"].params)
    assert [task["__var"]["task_id"] for task in written["tasks"] if "params" in task["__var"]] == []


@pytest.mark.parametrize("name", ["advance_experiments", "sweep_fleet"])
def test_a_scheduled_dag_runs_without_being_asked_and_never_twice_at_once(bag: Any, name: str) -> None:
    dag = bag.dags[name]

    assert dag.schedule is not None
    assert not dag.catchup
    assert dag.max_active_runs == 1


@pytest.mark.parametrize("name", NAMES)
def test_no_dag_waits_for_somebody_to_unpause_it(bag: Any, name: str) -> None:
    """Airflow makes DAGs paused unless they say otherwise, and the runs of a paused one are queued for ever."""
    assert bag.dags[name].is_paused_upon_creation is False


@pytest.mark.parametrize("name", ["pretrain_segment", "promote_checkpoint"])
def test_a_segment_and_a_persons_word_are_never_started_by_a_timetable(bag: Any, name: str) -> None:
    assert bag.dags[name].schedule is None


def test_the_dag_has_exactly_the_edges_of_the_graph(bag: Any) -> None:
    dag = bag.dags["pretrain_segment"]

    edges = {(task.task_id, below) for task in dag.tasks for below in task.downstream_task_ids}

    assert edges == graph.edges()


def test_every_branch_is_labelled_with_its_name(bag: Any) -> None:
    labels = bag.dags["pretrain_segment"].edge_info

    for rung in range(graph.RUNGS):
        of_verdict = labels[graph.in_rung(rung, "verdict")]
        assert {name: info["label"] for name, info in of_verdict.items()} == {
            graph.in_rung(rung, branch): branch.replace("_", " ") for branch in graph.branches(rung)
        }


def test_steps_that_report_failures_run_whatever_happened_before_them(bag: Any) -> None:
    dag = bag.dags["pretrain_segment"]
    always = [graph.Step.CLOSE_SEGMENT, *(graph.in_rung(rung, "verdict") for rung in range(graph.RUNGS))]

    assert {dag.get_task(name).trigger_rule for name in always} == {"all_done"}


def test_a_question_has_a_time_out_and_a_safe_default(bag: Any) -> None:
    for rung in range(graph.RUNGS - 1):
        ask = bag.dags["pretrain_segment"].get_task(graph.in_rung(rung, Action.ASK))

        assert ask.defaults == ["Stop here"]
        assert ask.execution_timeout is not None or ask.response_timeout is not None
        assert set(ask.options_mapping.values()) == set(graph.successors(rung, Action.ASK))


def test_a_question_is_told_when_it_is_put(bag: Any) -> None:
    for rung in range(graph.RUNGS - 1):
        ask = bag.dags["pretrain_segment"].get_task(graph.in_rung(rung, Action.ASK))

        assert [notifier.occasion for notifier in ask.notifiers] == ["asked"]


def test_the_form_has_a_section_and_a_description_for_every_field(bag: Any) -> None:
    params = bag.dags["pretrain_segment"].params

    for name in params:
        schema = params.get_param(name)
        assert schema.description, name
        assert schema.schema.get("section"), name


@pytest.mark.parametrize(
    ("name", "value"),
    [("experiment", "Not A Name"), ("segments", 0), ("segments", "three"), ("schedule", "hourly"), ("faults", "kill")],
)
def test_a_form_refuses_what_cannot_be_meant(bag: Any, name: str, value: object) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    param = bag.dags["pretrain_segment"].params.get_param(name)

    with pytest.raises(ParamValidationError):
        param.resolve(value)


def test_a_promotion_names_who_asked_for_it(bag: Any, root: str) -> None:
    story = Story(root=root).begin()
    checkpoint = accept_evaluated(story, 0, step=20, is_regression=True)
    promote = bag.dags["promote_checkpoint"].get_task("promote").python_callable

    promote(
        params={"root": root, "experiment": "demo", "step": None, "reason": "the data changed"},
        dag_run=SimpleNamespace(triggering_user_name="ada"),
    )

    mark = story.ledger.mark(checkpoint.name, "promoted")
    assert mark is not None
    assert mark.reason == "ada: the data changed"


# ------------------------------------------------------------------------------------------------ the scheduler

#: Slots of all work on nodes, in every DAG.
ON_NODES = {
    "sweep_fleet": {"gate_node": 1},
    "pretrain_segment": {
        graph.in_rung(rung, step): slots
        for rung in range(graph.RUNGS)
        for step, slots in ((graph.Step.GATE_NODE, 1), (graph.Step.GATE_FABRIC, 3), (graph.Step.TRAIN_SEGMENT, 3))
    },
}


@pytest.fixture(scope="module")
def scheduled() -> dict[str, Any]:
    """What Airflow's scheduler is told of each DAG where slots, a deadline and a queue are set: parsed and serialized."""
    program = (
        "import importlib.util, json, sys\n"
        "from airflow.serialization.serialized_objects import DagSerialization\n"
        "found = {}\n"
        "for path in sys.argv[1:]:\n"
        "    spec = importlib.util.spec_from_file_location('dag_under_test', path)\n"
        "    module = importlib.util.module_from_spec(spec)\n"
        "    spec.loader.exec_module(module)\n"
        "    dag = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(module.dag))\n"
        "    tasks = {task.task_id: [task.pool, task.pool_slots, type(task.weight_rule).__name__] for task in dag.tasks}\n"
        "    queues = sorted({task.queue for task in dag.tasks})\n"
        "    found[dag.dag_id] = {'tasks': tasks, 'deadline': dag.deadline, 'queues': queues}\n"
        "print('FOUND ' + json.dumps(found))\n"
    )
    settings = {"PRUNELLA_POOL_SLOTS": "3", "PRUNELLA_SEGMENT_DEADLINE_S": "5400", "PRUNELLA_QUEUE": "ward"}
    return answer_of(program, *FILES, **settings)


@pytest.mark.parametrize("name", NAMES)
def test_without_settings_every_task_is_in_the_default_pool_and_there_is_no_deadline(bag: Any, name: str) -> None:
    dag = bag.dags[name]

    assert {(task.pool, task.pool_slots) for task in dag.tasks} == {("default_pool", 1)}
    assert dag.deadline is None


@pytest.mark.parametrize("name", NAMES)
def test_whoever_asks_stages_is_in_the_queue_that_was_named_and_nobody_else_is(
    scheduled: dict[str, Any], bag: Any, name: str
) -> None:
    asks_stages = name in {"pretrain_segment", "sweep_fleet"}

    assert scheduled[name]["queues"] == (["ward"] if asks_stages else ["default"])
    assert {task.queue for task in bag.dags[name].tasks} == {"default"}


@pytest.mark.parametrize("name", NAMES)
def test_work_on_nodes_takes_a_slot_a_node_and_nothing_else_does(scheduled: dict[str, Any], name: str) -> None:
    tasks = scheduled[name]["tasks"]

    found = {task: (pool, slots) for task, (pool, slots, _) in tasks.items() if pool != "default_pool"}

    assert found == {task: (NODE_POOL, slots) for task, slots in ON_NODES.get(name, {}).items()}


def test_of_two_that_wait_for_nodes_the_one_that_is_further_goes_first(scheduled: dict[str, Any]) -> None:
    rules = {rule for pool, _, rule in scheduled["pretrain_segment"]["tasks"].values() if pool == NODE_POOL}

    assert rules == {"_UpstreamPriorityWeightStrategy"}


def test_a_sweep_skips_a_node_that_an_attempt_took_up_since_and_says_so(
    bag: Any, root: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from airflow.sdk.exceptions import AirflowSkipException

    story = Story(root=root).begin()
    key = next(key for key in open_sweep(root, None, "scheduled__1") if node_of(key) == "node-0")
    story.open_attempt(story.open_run())
    monkeypatch.setattr("airflow.sdk.get_current_context", dict)
    caplog.set_level(logging.INFO)

    with pytest.raises(AirflowSkipException, match="an attempt works on the node"):
        bag.dags["sweep_fleet"].get_task("gate_node").python_callable(key, params={"root": root})

    assert "node_left_in_peace node=node-0" in caplog.text


def test_a_segment_that_takes_too_long_is_told_by_the_triggerer_with_the_same_notifier(scheduled: dict[str, Any]) -> None:
    (deadline,) = scheduled["pretrain_segment"]["deadline"]

    assert "DagRunQueuedAtDeadline" in json.dumps(deadline["reference"])
    assert "5400" in json.dumps(deadline["interval"])
    assert "prunella.orchestration.notifier.Alert" in json.dumps(deadline["callback"])
    assert "AsyncCallback" in json.dumps(deadline["callback"])
    assert '"late"' in json.dumps(deadline["callback"])


@pytest.mark.parametrize(("launch", "last"), [("local", "gate_node"), ("kubernetes", "show_nodes")])
def test_a_sweep_shows_the_nodes_to_the_cluster_where_stages_run_on_one(launch: str, last: str) -> None:
    program = (
        "import json, runpy, sys\n"
        "dag = runpy.run_path(sys.argv[1])['dag']\n"
        "print('FOUND ' + json.dumps({task.task_id: task.trigger_rule for task in dag.tasks if not task.downstream_list}))\n"
    )

    found = answer_of(program, DAGS / "sweep_fleet.py", PRUNELLA_LAUNCH=launch)

    assert list(found) == [last]
    assert launch == "local" or found[last] == "all_done"


@pytest.mark.parametrize("value", ["0", "-1", "three", "1.5"])
def test_slots_that_cannot_be_meant_are_refused_with_advice(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PRUNELLA_POOL_SLOTS", value)

    with pytest.raises(ConfigError, match="how many nodes the fleet has"):
        on_all_nodes()


@pytest.mark.parametrize("value", ["0", "-5", "an hour", "nan", "1e300"])
def test_a_deadline_that_cannot_be_meant_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PRUNELLA_SEGMENT_DEADLINE_S", value)

    with pytest.raises(ConfigError, match="expected seconds above 0"):
        segment_deadline()


# ------------------------------------------------------------------------------------------------ what a parse costs


@pytest.fixture(scope="module")
def loaded_modules() -> dict[str, list[str]]:
    """For each DAG file, which heavy libraries a fresh process has loaded once it imported the file (cumulatively)."""
    program = (
        "import importlib.util, json, sys\n"
        "found = {}\n"
        "for path in sys.argv[1:]:\n"
        "    spec = importlib.util.spec_from_file_location('dag_under_test', path)\n"
        "    spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        f"    found[path] = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "print('FOUND ' + json.dumps(found))\n"
    )
    return answer_of(program, *FILES)


def answer_of(program: str, *arguments: Path, **environment: str) -> dict[str, Any]:
    """What a program prints after FOUND, in a process that has imported nothing yet."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    answer = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    line = next(line for line in answer.stdout.splitlines() if line.startswith("FOUND "))
    return json.loads(line.removeprefix("FOUND "))


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_parsing_a_dag_file_loads_nothing_heavy(loaded_modules: dict[str, list[str]], path: Path) -> None:
    assert loaded_modules[str(path)] == []
