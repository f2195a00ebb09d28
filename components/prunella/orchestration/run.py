"""Segment after segment in this process until the fold says complete: what `prunella run` and `run-local` have in common.

An engine runs one segment: `dag_test_engine` the DAG without a scheduler, `pipelines/run_local.py` the pipeline without a
cluster. Its scratch is private and thrown away; the ledger alone says what was done, so the same command after a kill -9
goes on.
"""

import importlib.util
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunella import faults
from prunella.errors import StorageError
from prunella.launch.engine import container_engine
from prunella.ledger import Ledger
from prunella.orchestration import airflow_home, closing, scheduling
from prunella.orchestration.claim import claim, continuation, is_fenced, next_segment, run_id_for
from prunella.orchestration.leaving import Leave, listen
from prunella.orchestration.submit import Submission, open_experiment
from prunella.records import Outcome, SegmentClosed
from prunella.startup import heavy_imports

logger = logging.getLogger(__name__)


#: Runs the next segment of an experiment, under a run id.
RunSegment = Callable[[Ledger, str], None]
#: Makes ready what runs segments, and cleans up after the last.
Engine = Callable[[], AbstractContextManager[RunSegment]]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """How an invocation ended. `unfired` are requested faults that never acted."""

    is_complete: bool
    message: str
    unfired: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        """Whether the command may exit 0."""
        return self.is_complete and not self.unfired


def run_experiment(submission: Submission, engine: Engine | None = None) -> RunResult:
    """Run an experiment until it is complete, stopped, or needs a person.

    Args:
        engine: what runs a segment; the DAG, in this process, by default.

    Raises:
        ConfigError: the submission cannot be meant.
    """
    ledger = open_experiment(submission)
    if next_segment(ledger) is None:
        return _result(ledger, "complete already")
    listen()
    try:
        with container_engine(), (engine or dag_test_engine)() as run_segment:
            return _result(ledger, _run_segments(ledger, run_segment))
    except KeyboardInterrupt:
        return _unfinished("interrupted")
    except (Leave, StorageError) as error:
        return _unfinished(str(error))


def _unfinished(why: str) -> RunResult:
    message = f"{why}; not complete: the same command goes on from the newest checkpoint that passes"
    return RunResult(is_complete=False, message=message, unfired=())


def _run_segments(ledger: Ledger, run_segment: RunSegment) -> str:
    """Each segment is taken up here, before its engine starts: the DAG run finds its claim, which says what it follows."""
    is_carried_on = False
    while (segment := next_segment(ledger)) is not None:
        if ledger.is_stop_requested():
            return "stopped; `prunella resume` takes the stop back"
        run_index = len(ledger.runs(segment))
        run_id = run_id_for(ledger, segment)
        logger.info("segment_run_started run_id=%s", run_id)
        claim(ledger, run_id, is_carried_on=is_carried_on)
        run_segment(ledger, run_id)
        close = ledger.closed(segment, run_index)
        if close is None:
            return f"segment run {run_id} ended without a close; the log above has the reason; run the command again"
        if not closing.may_continue(ledger, close) and next_segment(ledger) is not None:
            return f"segment {close.segment} {close.outcome}: {close.message}; {_next_step(ledger, close)}"
        is_carried_on = True
    return "complete"


def _next_step(ledger: Ledger, close: SegmentClosed) -> str:
    """What a person does about a close behind which the experiment stands still."""
    named = f"--root {ledger.store.root} --experiment {ledger.name}"
    if closing.is_on_hold(ledger, close):
        return (
            f"a person decides: `prunella checkpoint promote {named} --reason WHY` accepts the checkpoint all the same; "
            "the same command then goes on"
        )
    if close.outcome is Outcome.STOPPED:
        return f"`prunella resume {named}` takes the stop back"
    if is_fenced(ledger, close.segment, close.run_index):
        return f"`prunella status {named}` says how far the other is"
    return "once that is mended, the same command goes on"


@contextmanager
def dag_test_engine() -> Iterator[RunSegment]:
    """The DAG under `dag.test()`: Airflow without a scheduler, in a home of its own."""
    with tempfile.TemporaryDirectory(prefix="prunella-airflow-") as home:
        dag = _load_dag(Path(home))

        def run_segment(ledger: Ledger, run_id: str) -> None:
            dag.test(logical_date=None, run_conf=continuation(ledger) | {"unattended": True, "run_id": run_id})

        yield run_segment


def _load_dag(home: Path) -> Any:
    airflow_home.prepare(home)
    os.environ.update(airflow_home.environment(home) | {"AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"})
    for setting in scheduling.SETTINGS:
        os.environ.pop(setting, None)  # no scheduler: no slots to wait for, nobody to watch a clock
    path = airflow_home.dags_folder() / "pretrain_segment.py"
    spec = importlib.util.spec_from_file_location("prunella_dag_pretrain_segment", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with heavy_imports():  # Airflow
        spec.loader.exec_module(module)
    return module.dag


def _result(ledger: Ledger, message: str) -> RunResult:
    return RunResult(is_complete=next_segment(ledger) is None, message=message, unfired=unfired_faults(ledger))


def unfired_faults(ledger: Ledger) -> tuple[str, ...]:
    """Requested faults that have not acted."""
    switch = ledger.fault_switch()
    if switch is None:
        return ()
    return tuple(spec for spec in ledger.experiment().faults if switch.fired(faults.parse(spec)) is None)
