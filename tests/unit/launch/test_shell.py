"""The process of a stage: one proven request in, one record out, whatever the stage does.

The stage of these tests is a module of our own in the table of stages, so that it can fail in every way.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prunella import errors
from prunella.codec import digest
from prunella.config import Config, GateConfig, TrainingConfig
from prunella.errors import Cause, ConfigError
from prunella.launch import local
from prunella.launch.handle import register
from prunella.launch.shell import EXIT_FENCED, EXIT_HOST_LOST, EXIT_NOT_FIRST, EXIT_RECORDED, EXIT_TOO_LONG, STAGES, run_stage
from prunella.node_processes import LOOPBACK, free_port
from prunella.records import (
    DataPrepRecord,
    DataPrepRequest,
    FailedRecord,
    GateNodeRecord,
    GateNodeRequest,
    NodeRef,
    Part,
    Stage,
    Verdict,
)
from unit.orchestration.story import Story

Run = Callable[[Any, Any], Any]
KEY = "experiments/demo/segments/0000/runs/00/data_prep.request.json"
OUTPUT = "experiments/demo/segments/0000/runs/00/data_prep.json"


@pytest.fixture
def story(root: str) -> Story:
    return Story(root=root).begin()


@pytest.fixture
def stage_does(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """Makes data prep and the node gate do something else."""

    def install(run: Run) -> None:
        module = ModuleType("stage_of_a_test")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        for stage in (Stage.DATA_PREP, Stage.GATE_NODE):
            monkeypatch.setitem(STAGES, stage, (module.__name__, STAGES[stage][1]))

    return install


def ask(story: Story, *, config_digest: str | None = None) -> None:
    request = DataPrepRequest(
        stage=Stage.DATA_PREP,
        root=story.root,
        experiment=story.name,
        config_digest=config_digest or digest(story.config),
        output=OUTPUT,
    )
    story.ledger.put(KEY, request)


def answer(story: Story) -> DataPrepRecord | FailedRecord | None:
    return story.ledger.find_stage_record(DataPrepRecord, OUTPUT)


def failed(story: Story) -> FailedRecord:
    record = answer(story)
    assert isinstance(record, FailedRecord)
    return record


def raising(error: BaseException) -> Run:
    def run(config: Config, request: Any) -> Any:
        raise error

    return run


def good_record(config: Config, request: Any, started_ns: int = 2**62) -> DataPrepRecord:
    return DataPrepRecord(
        stage=Stage.DATA_PREP,
        verdict=Verdict.ACCEPTED,
        started_ns=started_ns,
        ended_ns=started_ns,
        fingerprint=request.experiment,
        manifest_sha256="0" * 64,
        train_tokens=config.steps_per_segment,
        heldout_tokens=1,
        documents=1,
        quarantined=0,
    )


CLASSIFIED = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, errors.PrunellaError)
    and kind is not errors.Fenced
    and kind.cause is not Cause.UNKNOWN
]


# ------------------------------------------------------------------------------------------------ records


def test_a_stage_gets_the_recorded_configuration_and_its_request_and_its_record_is_kept(
    story: Story, stage_does: Callable[[Run], None]
) -> None:
    ask(story)
    stage_does(good_record)

    code = run_stage(Stage.DATA_PREP, root=story.root, key=KEY)

    record = answer(story)
    assert code == EXIT_RECORDED
    assert isinstance(record, DataPrepRecord)
    assert (record.fingerprint, record.train_tokens) == ("demo", story.config.steps_per_segment)


def test_the_time_a_process_needed_before_its_stage_began_has_a_name(story: Story, stage_does: Callable[[Run], None]) -> None:
    ask(story)
    stage_does(good_record)

    run_stage(Stage.DATA_PREP, root=story.root, key=KEY)

    record = answer(story)
    assert record is not None
    assert [span.part for span in record.spans] == [Part.DATA_PREPARATION]
    assert record.spans[0].end_ns == record.started_ns


def test_a_record_older_than_this_process_keeps_its_spans(story: Story, stage_does: Callable[[Run], None]) -> None:
    ask(story)
    stage_does(lambda config, request: good_record(config, request, started_ns=1))

    run_stage(Stage.DATA_PREP, root=story.root, key=KEY)

    record = answer(story)
    assert record is not None
    assert record.spans == ()


@pytest.mark.parametrize("kind", CLASSIFIED, ids=lambda kind: kind.__name__)
def test_a_classified_error_becomes_a_record_with_its_cause(
    kind: type[errors.PrunellaError], story: Story, stage_does: Callable[[Run], None]
) -> None:
    ask(story)
    stage_does(raising(kind("expected this, found that")))

    code = run_stage(Stage.DATA_PREP, root=story.root, key=KEY)

    failure = failed(story).failure
    assert code == EXIT_RECORDED
    assert failure is not None
    assert (failure.cause, failure.message) == (kind.cause, "expected this, found that")
    assert failure.evidence == ({"error": "StorageFull"} if kind is errors.StorageFull else {}), "what the policy tells apart"


def test_an_error_nobody_classified_keeps_its_traceback(story: Story, stage_does: Callable[[Run], None]) -> None:
    ask(story)
    stage_does(raising(ZeroDivisionError("by zero")))

    code = run_stage(Stage.DATA_PREP, root=story.root, key=KEY)

    failure = failed(story).failure
    assert code == EXIT_RECORDED
    assert failure is not None
    assert failure.cause is Cause.UNKNOWN
    assert "raise error" in str(failure.evidence["traceback"])
    assert "ZeroDivisionError: by zero" in str(failure.evidence["traceback"])


def test_an_error_without_words_is_named_by_its_class(story: Story, stage_does: Callable[[Run], None]) -> None:
    ask(story)
    stage_does(raising(RuntimeError()))

    run_stage(Stage.DATA_PREP, root=story.root, key=KEY)

    failure = failed(story).failure
    assert failure is not None
    assert failure.message == "RuntimeError"


class OutOfMemoryError(RuntimeError):
    """As torch calls its own, which this side does not import."""


@pytest.mark.parametrize("error", [MemoryError("host"), OutOfMemoryError("device")], ids=["host", "device"])
def test_memory_that_ran_out_is_a_cause_of_its_own(error: Exception, story: Story, stage_does: Callable[[Run], None]) -> None:
    ask(story)
    stage_does(raising(error))

    run_stage(Stage.DATA_PREP, root=story.root, key=KEY)

    failure = failed(story).failure
    assert failure is not None
    assert failure.cause is Cause.OUT_OF_MEMORY


def test_a_fenced_stage_writes_nothing(story: Story, stage_does: Callable[[Run], None]) -> None:
    ask(story)
    stage_does(raising(errors.Fenced("attempt 1 holds the token")))

    code = run_stage(Stage.DATA_PREP, root=story.root, key=KEY)

    assert code == EXIT_FENCED == 3
    assert answer(story) is None


def test_the_first_record_stands(story: Story, stage_does: Callable[[Run], None]) -> None:
    ask(story)
    stage_does(good_record)
    run_stage(Stage.DATA_PREP, root=story.root, key=KEY)
    first = answer(story)
    stage_does(raising(ZeroDivisionError("by zero")))

    code = run_stage(Stage.DATA_PREP, root=story.root, key=KEY)

    assert code == EXIT_RECORDED
    assert answer(story) == first


# ------------------------------------------------------------------------------------------------ what is proven first


def test_a_request_for_another_configuration_is_refused_before_the_stage_runs(
    story: Story, stage_does: Callable[[Run], None]
) -> None:
    ask(story, config_digest="0" * 64)
    stage_does(good_record)

    with pytest.raises(ConfigError, match=r"made for the configuration 000000000000.*open a new attempt"):
        run_stage(Stage.DATA_PREP, root=story.root, key=KEY)

    assert answer(story) is None


def test_a_request_that_is_not_there_is_refused(story: Story) -> None:
    with pytest.raises(ConfigError, match="there is no such request"):
        run_stage(Stage.DATA_PREP, root=story.root, key=KEY)


def test_a_request_of_another_stage_is_refused(story: Story) -> None:
    ask(story)

    with pytest.raises(ConfigError, match="expected a 'gate_node_request' record, found 'data_prep_request'"):
        run_stage(Stage.GATE_NODE, root=story.root, key=KEY)


def test_a_process_that_comes_second_runs_nothing(story: Story, stage_does: Callable[[Run], None], tmp_path: Path) -> None:
    ask(story)
    stage_does(good_record)
    register(tmp_path / "stage.handle")

    code = run_stage(Stage.DATA_PREP, root=story.root, key=KEY, handle=tmp_path / "stage.handle")

    assert code == EXIT_NOT_FIRST
    assert answer(story) is None


def test_a_request_of_the_fleet_belongs_to_no_experiment_and_runs_with_the_defaults(
    story: Story, stage_does: Callable[[Run], None]
) -> None:
    key, output = "fleet/sweeps/s1/requests/node-0.json", "fleet/sweeps/s1/records/node-0.json"
    request = GateNodeRequest(
        stage=Stage.GATE_NODE, root=story.root, experiment="", config_digest="any", output=output, node="node-0"
    )
    story.ledger.put(key, request)
    seen: list[Config] = []

    def run(config: Config, request: Any) -> Any:
        seen.append(config)
        raise errors.StorageUnavailable("away")

    stage_does(run)

    code = run_stage(Stage.GATE_NODE, root=story.root, key=key)

    assert code == EXIT_RECORDED
    assert seen == [Config()]
    assert story.ledger.find(FailedRecord, output) is not None


def test_a_pod_that_is_not_the_first_runs_no_stage_and_without_a_first_one_says_so(
    root: str, stage_does: Callable[[Run], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(root=root, config=Config(training=TrainingConfig(startup_timeout_s=0.5))).begin()
    ask(story)
    stage_does(good_record)
    for name, value in {"NNODES": 2, "NODE_RANK": 1, "MASTER_ADDR": LOOPBACK, "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(f"PET_{name}", str(value))

    code = run_stage(Stage.DATA_PREP, root=story.root, key=KEY)

    assert code == EXIT_HOST_LOST
    assert answer(story) is None


def test_the_only_pod_of_a_train_job_runs_the_stage(
    story: Story, stage_does: Callable[[Run], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(story)
    stage_does(good_record)
    monkeypatch.setenv("PET_NNODES", "1")

    code = run_stage(Stage.DATA_PREP, root=story.root, key=KEY)

    assert code == EXIT_RECORDED


# ------------------------------------------------------------------------------------------------ time limits


def test_a_gate_that_takes_longer_than_it_may_ends_itself_and_leaves_no_record(root: str, tmp_path: Path) -> None:
    """A real process. Its imports take longer than its limit."""
    story = Story(root=root, config=Config(gate=GateConfig(node_timeout_s=0.01))).begin()
    prefix = "experiments/demo/segments/0000/attempts/00"
    key, output = f"{prefix}/requests/gate_node-node-0.json", f"{prefix}/records/gate_node-node-0.json"
    request = GateNodeRequest(
        stage=Stage.GATE_NODE,
        root=root,
        experiment=story.name,
        config_digest=digest(story.config),
        output=output,
        nodes=(NodeRef(name="node-0"),),
        node="node-0",
    )
    story.ledger.put(key, request)

    gate = local.start(["stage", "gate_node", "--root", root, "--request", key], log=tmp_path / "gate.log")

    assert gate.wait(60.0) == EXIT_TOO_LONG
    log = (tmp_path / "gate.log").read_text()
    assert "stage_ended_itself limit_s=0.01\n" in log
    assert " in _run_to_record\n" in log
    assert story.ledger.find_stage_record(GateNodeRecord, output) is None


_HANGS_WITH_THE_LOCK = """
import ctypes
from prunella.launch import shell
shell._LOCK_GRACE_S = 0.2
with shell.ended_after(0.2):
    ctypes.PyDLL(None).sleep(50)
"""


def test_a_limit_ends_a_process_that_hangs_with_the_interpreters_lock_and_says_where() -> None:
    """A real process, in a call that gives the lock to nobody, as one into a driver may."""
    done = subprocess.run([sys.executable, "-c", _HANGS_WITH_THE_LOCK], capture_output=True, text=True, timeout=40, check=False)

    assert done.returncode == EXIT_TOO_LONG
    assert "stage_ended_itself" not in done.stderr  # no thread of ours got the lock
    assert 'File "<string>", line 6' in done.stderr


def test_a_process_whose_stage_was_quick_enough_goes_on() -> None:
    quick = "import time\nfrom prunella.launch.shell import ended_after\nwith ended_after(0.2): pass\ntime.sleep(0.4)"

    done = subprocess.run([sys.executable, "-c", quick], capture_output=True, text=True, timeout=40, check=False)

    assert (done.returncode, done.stderr) == (0, "")
