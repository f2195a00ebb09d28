"""Airflow's own scheduling code on a database of its own, without its daemon: prints what it decided as JSON.

Run by test_scheduler.py in an environment that names a migrated Airflow home. `scheduler_job.py nodes` says who may work on
nodes and what comes of a missed deadline; `scheduler_job.py advance ROOT` what `advance_experiments` triggers;
`scheduler_job.py close ROOT RUN_ID` how a segment's run ends whose attempts are in the ledger.
"""

import asyncio
import importlib.util
import json
import re
import sys
from typing import Any

import structlog
from airflow.callbacks.callback_requests import DagCallbackRequest
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import BundleDagBag, DagBag, sync_bag_to_db
from airflow.dag_processing.processor import _execute_dag_callbacks
from airflow.executors.local_executor import LocalExecutor
from airflow.jobs.job import Job
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.dagbag import DBDagBag
from airflow.models.dagrun import DagRun
from airflow.models.deadline import Deadline
from airflow.models.taskinstance import TaskInstance
from airflow.sdk._shared.timezones import timezone
from airflow.triggers.callback import CallbackTrigger
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, TaskInstanceState
from airflow.utils.types import DagRunTriggeredByType, DagRunType
from sqlalchemy import select
from sqlalchemy.orm import Session

from prunella.orchestration.airflow_home import dags_folder

DAG_ID = "pretrain_segment"
TRAIN, GATE = "attempt_0.train_segment", "attempt_0.gate_node"
RUNS = ("a__seg-0000__r0", "b__seg-0000__r0")
SWEEP, SWEPT = "sweep__1", "gate_node"
#: The run of an experiment whose ledger shows no sign of life.
QUIET = "demo__seg-0000__r0"


def parse(session: Session) -> None:
    """What the DAG processor does: the files of the bundle go into the database."""
    manager = DagBundlesManager()
    manager.sync_bundles_to_db(session=session)
    session.commit()
    (bundle,) = manager.get_all_dag_bundles()
    bundle.initialize()
    bag = BundleDagBag(dag_folder=bundle.path, bundle_path=bundle.path, bundle_name=bundle.name)
    assert bag.import_errors == {}
    sync_bag_to_db(bag, bundle.name, bundle.version)


def trigger(run_id: str, session: Session, dag_id: str = DAG_ID) -> None:
    """A DAG run, as the API makes one, then taken up as the scheduler does."""
    dag = DBDagBag().get_latest_version_of_dag(dag_id, session=session)
    assert dag is not None
    run = dag.create_dagrun(
        run_id=run_id,
        run_after=timezone.utcnow(),
        run_type=DagRunType.MANUAL,
        triggered_by=DagRunTriggeredByType.TEST,
        state=DagRunState.QUEUED,
        conf={"experiment": run_id.partition("__")[0]},
        session=session,
    )
    run.state = DagRunState.RUNNING
    session.commit()


def put(run_id: str, task_id: str, state: TaskInstanceState, session: Session) -> None:
    """A task instance into a state."""
    found = session.scalars(select(TaskInstance).filter_by(run_id=run_id, task_id=task_id)).one()
    found.state = state
    session.commit()


class Scheduler:
    """The part of the scheduler that chooses what may run."""

    def __init__(self) -> None:
        self._runner = SchedulerJobRunner(job=Job(), executors=[LocalExecutor(parallelism=8)])

    def chosen(self, session: Session) -> list[str]:
        """Ids of runs and tasks that it would start now."""
        found = self._runner._executable_task_instances_to_queued(max_tis=32, session=session)
        names = [f"{ti.run_id.partition('__')[0]}:{ti.task_id.rpartition('.')[2]}" for ti in found]
        session.rollback()
        return names


def nodes_in_turn(session: Session) -> dict[str, Any]:
    """Two experiments want the same nodes: which of them may work on them, as one goes on."""
    scheduler = Scheduler()
    older, newer = RUNS
    put(older, GATE, TaskInstanceState.SCHEDULED, session)
    put(newer, TRAIN, TaskInstanceState.SCHEDULED, session)
    found = {"the older wants to gate, the newer to train": scheduler.chosen(session)}
    put(newer, TRAIN, TaskInstanceState.RUNNING, session)
    found["the newer trains, the older wants to gate"] = scheduler.chosen(session)
    put(older, GATE, TaskInstanceState.SUCCESS, session)
    put(older, TRAIN, TaskInstanceState.SCHEDULED, session)
    found["the newer trains, the older wants to train"] = scheduler.chosen(session)
    put(newer, TRAIN, TaskInstanceState.SUCCESS, session)
    found["the newer has trained, the older wants to train"] = scheduler.chosen(session)
    return found


def miss_deadline(session: Session) -> dict[str, Any]:
    """What the scheduler does about a deadline that has passed, and then the triggerer."""
    deadline = session.scalars(select(Deadline)).first()
    assert deadline is not None
    deadline.handle_miss(session)
    session.commit()
    trigger_row = deadline.callback.trigger
    events = asyncio.run(_events(CallbackTrigger(**trigger_row.kwargs)))
    return {"trigger": trigger_row.classpath, "states": events}


def fail(session: Session) -> None:
    """What the scheduler asks of the DAG processor when a run's last task failed, and what the DAG processor does then."""
    run = session.scalars(select(DagRun).filter_by(dag_id=DAG_ID, run_id=RUNS[1])).one()
    last = next(ti for ti in run.get_task_instances(session=session) if ti.task_id == "close_segment")
    dag = DBDagBag().get_latest_version_of_dag(DAG_ID, session=session)
    asked = run.produce_dag_callback(dag=dag, success=False, relevant_ti=last, reason="task_failure")
    request = DagCallbackRequest.model_validate_json(asked.model_dump_json())
    _execute_dag_callbacks(DagBag(dag_folder=str(dags_folder())), request, structlog.get_logger())


def sweep_in_turn(session: Session) -> dict[str, Any]:
    """A sweep and an experiment want the same nodes: which of them may work on them."""
    scheduler = Scheduler()
    older, newer = RUNS
    put(older, TRAIN, TaskInstanceState.SUCCESS, session)
    for gate in (GATE, GATE.replace("0", "1")):
        put(newer, gate, TaskInstanceState.RUNNING, session)
    put(older, GATE, TaskInstanceState.SCHEDULED, session)
    put(SWEEP, SWEPT, TaskInstanceState.SCHEDULED, session)
    found = {"one slot is left, the experiment and the sweep want to gate": scheduler.chosen(session)}
    for gate in (GATE, GATE.replace("0", "1")):
        put(newer, gate, TaskInstanceState.SUCCESS, session)
    put(older, GATE, TaskInstanceState.SUCCESS, session)
    put(older, TRAIN, TaskInstanceState.RUNNING, session)
    found["the experiment trains, the sweep wants to gate"] = scheduler.chosen(session)
    put(SWEEP, SWEPT, TaskInstanceState.RUNNING, session)
    put(older, TRAIN, TaskInstanceState.SCHEDULED, session)
    found["the sweep gates, the experiment wants to train"] = scheduler.chosen(session)
    put(SWEEP, SWEPT, TaskInstanceState.SCHEDULED, session)
    put(older, TRAIN, TaskInstanceState.SUCCESS, session)
    found["the experiment has trained, the sweep wants to gate"] = scheduler.chosen(session)
    return found


async def _events(trigger: CallbackTrigger) -> list[str]:
    return [str(event.payload["state"]) async for event in trigger.run()]


def advance(root: str, session: Session) -> dict[str, Any]:
    """Runs of segments before and after Airflow let go of the experiment's first, and of one that took nothing up."""
    parse(session)
    trigger(QUIET, session)
    found = {"in hand": _runs_after_advancing(root, session)}
    _let_go(QUIET, session)
    found["let go"] = _runs_after_advancing(root, session)
    found["on its way"] = _runs_after_advancing(root, session)
    _let_go(found["let go"][-1], session)
    return found | {"took nothing up": _runs_after_advancing(root, session)}


def _let_go(run_id: str, session: Session) -> None:
    session.scalars(select(DagRun).filter_by(dag_id=DAG_ID, run_id=run_id)).one().state = DagRunState.FAILED
    session.commit()


def _runs_after_advancing(root: str, session: Session) -> list[str]:
    tick = dag_of("advance_experiments").test(run_conf={"root": root})
    assert str(tick.state) == "success", tick.state
    session.expire_all()
    return sorted(session.scalars(select(DagRun.run_id).filter_by(dag_id=DAG_ID)))


def close(root: str, run_id: str, session: Session) -> dict[str, Any]:
    """How a segment's DAG run ends, and its last two tasks. Those that climb the ladder are taken for done."""
    conf = {"root": root, "experiment": run_id.partition("__")[0], "continues": True, "run_id": run_id}
    run = dag_of(DAG_ID).test(logical_date=None, run_conf=conf, mark_success_pattern=re.compile("attempt_|evaluate|promote"))
    ends = {ti.task_id: str(ti.state) for ti in run.get_task_instances(session=session)}
    return {"run": str(run.state)} | {name: ends[name] for name in ("close_segment", "continue_experiment")}


def dag_of(name: str) -> Any:
    """The DAG of a file, as a worker has it."""
    spec = importlib.util.spec_from_file_location(f"{name}_under_test", dags_folder() / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.dag


def nodes(session: Session) -> dict[str, Any]:
    """Who may work on nodes, and what comes of a failure and of a missed deadline."""
    parse(session)
    for run_id in RUNS:
        trigger(run_id, session)
    trigger(SWEEP, session, "sweep_fleet")
    turns = nodes_in_turn(session) | sweep_in_turn(session)
    found: dict[str, Any] = {"turns": turns, "deadlines": session.query(Deadline).count()}
    fail(session)
    return found | ({"missed": miss_deadline(session)} if found["deadlines"] else {})


def main() -> None:
    what, *arguments = sys.argv[1:]
    with create_session() as session:
        found = {"nodes": nodes, "advance": advance, "close": close}[what](*arguments, session=session)
    print("FOUND " + json.dumps(found))


if __name__ == "__main__":
    main()
