"""The compiled pipelines: those of the repository, with the graph's edges, and nothing that would lie or start twice."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from kfp.kubernetes.node_affinity import validate_node_affinity
from typer.testing import CliRunner

from prunella.cli import app
from prunella.errors import ConfigError
from prunella.launch.images import TRAINER, image_name
from prunella.launch.kubernetes.placement import HOST_LABEL, exclusion
from prunella.launch.kubernetes.settings import STORE_FOLDER, STORE_KEYS, STORE_SETTINGS
from prunella.orchestration import graph
from prunella.orchestration.pipelines.compile import compile_pipelines
from prunella.orchestration.pipelines.components import (
    CONTAINER_ANSWER,
    LIGHTWEIGHT_ANSWER,
    STEPS,
    run_in_container,
)
from prunella.orchestration.pipelines.form import Form
from prunella.records import Action
from unit.orchestration.pipelines.compiled import Compiled, read

GOLDEN = Path(__file__).resolve().parents[3] / "golden"
STORE = "prunella-store"
FORMS = {"container": Form(is_container=True, store_secret=STORE), "lightweight": Form(store_secret=STORE)}


@pytest.fixture(scope="module", params=FORMS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return compile_pipelines(tmp_path_factory.mktemp("pipelines"), FORMS[request.param])


@pytest.fixture
def pretrain_segment(written: list[Path]) -> Compiled:
    return read(written[0])


def test_compiled_pipelines_are_those_of_the_repository(written: list[Path]) -> None:
    different = [path.name for path in written if path.read_bytes() != (GOLDEN / path.name).read_bytes()]

    assert different == [], "a component, a signature or an edge changed; if that was meant, run `make golden` and commit"


def test_a_file_in_the_place_of_the_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()

    with pytest.raises(ConfigError, match="taken: expected a folder that can be written to, found: File exists; choose"):
        compile_pipelines(tmp_path / "taken", Form())


def test_a_pipeline_has_exactly_the_edges_of_the_graph(pretrain_segment: Compiled) -> None:
    impossible_here = {
        # Nobody can be asked inside a pipeline, so nobody's answer opens the next attempt.
        *((graph.in_rung(n, Action.ASK), graph.in_rung(n + 1, graph.Step.OPEN_ATTEMPT)) for n in range(graph.RUNGS - 1)),
        # The loop over segments stays outside.
        (graph.Step.CLOSE_SEGMENT.value, graph.Step.CONTINUE_EXPERIMENT.value),
    }

    assert pretrain_segment.edges == graph.edges() - impossible_here


def test_nothing_is_cached_and_nothing_is_retried(written: list[Path]) -> None:
    for path in written:
        for task in read(path).steps():
            assert task["cachingOptions"] == {}, task["taskInfo"]
            assert "retryPolicy" not in task, task["taskInfo"]


def test_the_close_runs_whatever_became_of_the_rest(pretrain_segment: Compiled) -> None:
    close = pretrain_segment.pipeline["root"]["dag"]["tasks"]["close-segment"]

    assert close["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert "taskFinalStatus" in close["inputs"]["parameters"]["status"]


def test_training_is_kept_off_the_nodes_that_the_gate_left_out(pretrain_segment: Compiled) -> None:
    executors = pretrain_segment.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]

    kept_off = {name: entry["nodeAffinity"][0] for name, entry in executors.items() if "nodeAffinity" in entry}
    producers = [affinity["nodeAffinityJson"]["taskOutputParameter"]["producerTask"] for affinity in kept_off.values()]
    assert producers == ["gate-fabric", "gate-fabric-2", "gate-fabric-3"]
    assert all(name.startswith("exec-train-segment") for name in kept_off)


def test_nothing_but_the_close_outlives_a_failed_task_and_nothing_waits_for_it(pretrain_segment: Compiled) -> None:
    """Kubeflow's backend makes an exit hook of whatever runs in any case: no other task may follow it, in any group."""
    for dag in pretrain_segment.dags():
        tasks = dag["tasks"]
        hooks = {name for name, task in tasks.items() if "strategy" in task.get("triggerPolicy", {})}
        assert hooks <= {"close-segment"}
        for name, task in tasks.items():
            assert not hooks & set(task.get("dependentTasks", [])), name
            inputs = task.get("inputs", {}).get("parameters", {}).values()
            assert not hooks & {given.get("taskOutputParameter", {}).get("producerTask") for given in inputs}, name


def test_whatever_works_on_a_root_is_told_how_to_reach_it_and_nothing_else_is(written: list[Path]) -> None:
    for path in written:
        compiled = read(path)
        executors = compiled.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        components = compiled.pipeline["components"]
        for component in components.values():
            if "executorLabel" not in component:
                continue
            has_root = "root" in component.get("inputDefinitions", {}).get("parameters", {})
            told = executors.get(component["executorLabel"], {})
            keys = [key["envVar"] for secret in told.get("secretAsEnv", []) for key in secret["keyToEnv"]]
            settings = [key["envVar"] for map_ in told.get("configMapAsEnv", []) for key in map_["keyToEnv"]]
            assert (keys, settings) == ((list(STORE_KEYS), list(STORE_SETTINGS)) if has_root else ([], [])), component
            folders = [map_["mountPath"] for map_ in told.get("configMapAsVolume", [])]
            assert folders == ([STORE_FOLDER] if has_root else []), component
            kinds = ("secretAsEnv", "configMapAsEnv", "configMapAsVolume")
            assert all(source["optional"] for kind in kinds for source in told.get(kind, []))


def test_accelerators_are_asked_for_by_the_stages_that_bring_torch_and_by_nothing_else(tmp_path: Path) -> None:
    form = Form(is_container=True, devices=8, device_resource="amd.com/gpu")

    for path in compile_pipelines(tmp_path, form):
        compiled = read(path)
        platform = compiled.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        for name, executor in compiled.pipeline["deploymentSpec"]["executors"].items():
            asked = executor["container"]["resources"].get("accelerator", {})
            brings_torch = executor["container"]["image"] == image_name(TRAINER, "")
            found = (asked.get("resourceType"), asked.get("resourceCount"))
            assert found == (("amd.com/gpu", "8") if brings_torch else (None, None)), executor
            tolerated = platform.get(name, {}).get("tolerations", [])
            taint = {"key": "amd.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
            assert tolerated == ([taint] if brings_torch else []), executor


def test_the_command_writes_the_pipelines_of_the_repository(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["pipeline", "compile", "--output", str(tmp_path / "new")])

    assert done.exit_code == 0, done.output
    written = sorted((tmp_path / "new").iterdir())
    assert [path.name for path in written] == ["pretrain_segment.yaml", "sweep_fleet.yaml"]
    assert [path.read_bytes() for path in written] == [(GOLDEN / path.name).read_bytes() for path in written]


def test_every_option_of_the_command_is_in_what_it_writes(tmp_path: Path) -> None:
    options = ["--image-prefix", "registry.example/team/", "--store-secret", "my-bucket", "--devices", "4", "--lightweight"]

    done = CliRunner().invoke(app, ["pipeline", "compile", "--output", str(tmp_path), *options])

    assert done.exit_code == 0, done.output
    text = (tmp_path / "pretrain_segment.lightweight.yaml").read_text()
    wanted = ("image: registry.example/team/prunella/trainer", "secretName: my-bucket", "resourceCount: '4'", "nvidia.com/gpu")
    assert [found for found in wanted if found not in text] == []


def test_an_exclusion_is_an_affinity_that_kubernetes_accepts() -> None:
    found: Any = exclusion(["node-2", "node-1"])

    validate_node_affinity(found)
    (term,) = found["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [{"key": HOST_LABEL, "operator": "NotIn", "values": ["node-1", "node-2"]}]
    assert exclusion([]) == {}


# ------------------------------------------------------------------------------------------------ one spec, two forms


@pytest.mark.parametrize("name", STEPS)
def test_both_forms_of_a_component_have_one_interface(name: str) -> None:
    lightweight, container = STEPS[name].lightweight().component_spec, STEPS[name].container().component_spec

    assert container.inputs == lightweight.inputs
    assert container.description == lightweight.description
    renamed = {LIGHTWEIGHT_ANSWER: CONTAINER_ANSWER}
    expected = {renamed.get(key, key): spec.type for key, spec in (lightweight.outputs or {}).items()}
    assert {key: spec.type for key, spec in (container.outputs or {}).items()} == expected


@pytest.mark.parametrize("name", STEPS)
def test_every_input_of_a_component_is_described(name: str) -> None:
    inputs = STEPS[name].lightweight().component_spec.inputs or {}

    assert [key for key, spec in inputs.items() if not spec.description and key != "status"] == []
    assert STEPS[name].lightweight().description


def test_images_carry_the_registrys_prefix() -> None:
    (with_prefix,) = {STEPS["promote"].image_name("registry.example/team/")}

    assert with_prefix == f"registry.example/team/{STEPS['promote'].image_name('')}"


def test_a_changed_signature_changes_the_compiled_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def follow(to: str, extra: int = 0) -> str:
        """Where the branch leads.

        Args:
            to: the step that follows.
            extra: new.
        """
        return to

    from prunella.orchestration.pipelines import components

    monkeypatch.setitem(STEPS, "follow", dataclasses.replace(STEPS["follow"], function=follow))
    components.component.cache_clear()
    try:
        changed = compile_pipelines(tmp_path, FORMS["container"])[0]
    finally:
        components.component.cache_clear()

    assert changed.read_bytes() != (GOLDEN / changed.name).read_bytes()


# ------------------------------------------------------------------------------------------------ inside an image


def executor_input(folder: Path, outputs: dict[str, str], **parameters: Any) -> str:
    """What Kubeflow would put in for its placeholder."""
    files = {name: {"outputFile": str(folder / path)} for name, path in outputs.items()}
    inputs = {"parameterValues": parameters}
    return json.dumps({"inputs": inputs, "outputs": {"parameters": files, "outputFile": str(folder / "executor_output.json")}})


def test_a_container_answers_under_its_own_name(tmp_path: Path) -> None:
    given = executor_input(tmp_path, {CONTAINER_ANSWER: "answer"}, taken="attempt_0.accept", to="evaluate")

    run_in_container("branch", given)

    assert (tmp_path / "answer").read_text() == "evaluate"
    assert json.loads((tmp_path / "executor_output.json").read_text()) == {"parameterValues": {CONTAINER_ANSWER: "evaluate"}}


def test_a_container_that_fails_says_why(tmp_path: Path) -> None:
    given = executor_input(tmp_path, {}, root=str(tmp_path), experiment="nobody", job_id="job-1")

    with pytest.raises(Exception, match="pipeline run job-1 opened no segment of 'nobody'"):
        run_in_container("open_segment", given)
