"""Thin Airflow operators: each runs one step of `orchestration` and translates how it ended into Airflow's words.

A classified failure is a record and a green task; only what nobody classified is red. `NotReached` becomes skipped. The
claim of the DAG run travels by XCom from `prepare_data`; everything else is in the ledger. The handle of a stage's process
is kept in Airflow's task state store, so that the next try, and a person, can find it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import BaseOperator, BaseOperatorLink, SkipMixin
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from prunella.errors import Cause, ConfigError
from prunella.launch.handle import Handle
from prunella.orchestration import closing, graph, judging, lineage, opening, stages
from prunella.orchestration.claim import (
    SegmentRun,
    claim,
    continuation,
    is_fenced,
    last_run,
    next_segment,
    read_claim,
    run_id_for,
)
from prunella.orchestration.leaving import may_leave
from prunella.orchestration.lineage import Lineage, in_openlineage
from prunella.orchestration.notifier import WAITING, Alert
from prunella.orchestration.opening import StepFailed
from prunella.orchestration.publishing import publish_apart
from prunella.orchestration.stages import NotReached
from prunella.orchestration.submit import Submission, find_experiment, open_experiment
from prunella.records import Outcome, SegmentClosed
from prunella.redaction import redacted

CLAIM = "claim"
FAILURE = "failure"


def submission_from(params: dict[str, Any]) -> Submission:
    """What the form or the trigger asked for. Empty fields were not given."""

    def given(name: str) -> Any:
        value = params.get(name)
        return None if value in ("", None) else value

    return Submission(
        root=params["root"],
        experiment=params["experiment"],
        recipe=given("recipe"),
        config_file=given("config_file"),
        segments=given("segments"),
        steps_per_segment=given("steps_per_segment"),
        nodes=given("nodes"),
        seed=given("seed"),
        schedule=given("schedule"),
        fleet=given("fleet"),
        faults=tuple(params.get("faults") or ()),
        assignments=tuple(params.get("set") or ()),
        is_sole_writer=True,  # of two DAG runs with one id Airflow starts one
    )


class MlflowLink(BaseOperatorLink):
    """Opens the experiment's run in MLflow."""

    name = "MLflow run"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        return str(getattr(operator, "mlflow_url", "") or "")


class ReportLink(BaseOperatorLink):
    """Opens the experiment's report, where MLflow keeps it."""

    name = "Report"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        return str(getattr(operator, "report_url", "") or "")


class SegmentStep(BaseOperator, SkipMixin):
    """Base: finds the run, runs `work`, translates its end."""

    ui_color = "#e8f3ec"
    segment_run: SegmentRun | None = None

    def work(self, run: SegmentRun, context: Any) -> Any:
        """The step itself; what it returns is pushed to XCom."""
        raise NotImplementedError

    def execute(self, context: Any) -> Any:
        with may_leave(is_unattended=bool(context["params"].get("unattended"))):
            return self.translated(context)

    def translated(self, context: Any) -> Any:
        """The step, and how it ended in Airflow's words."""
        try:
            run = self.segment_run = self.run_of(context)
            return self.work(run, context)
        except NotReached as skipped:
            raise AirflowSkipException(str(skipped)) from skipped
        except ConfigError as error:
            raise AirflowFailException(str(error)) from error

    def run_of(self, context: Any) -> SegmentRun:
        """The claim that this DAG run's first task made."""
        key = context["ti"].xcom_pull(task_ids=graph.Step.PREPARE_DATA.value, key=CLAIM)
        if key is None:
            raise NotReached("no segment was opened by this DAG run; see the log of prepare_data")
        return read_claim(context["params"]["root"], key, is_unattended=bool(context["params"].get("unattended")))

    def keep(self, context: Any) -> Callable[[Handle], None]:
        """Keeps the handle of a stage's process in Airflow's task state store."""
        store = context.get("task_state_store")

        def on_start(handle: Handle) -> None:
            if store is not None:
                known = store.get("stage_process")
                self.log.info("stage process: %s (kept from an earlier try: %s)", handle, known)
                store.set("stage_process", handle.words())

        return on_start

    def close_early(self, context: Any, failed: StepFailed) -> None:
        """Skip everything but the close, which reports the failure. Ends the task."""
        self.log.error("%s", failed)
        context["ti"].xcom_push(key=FAILURE, value={"message": redacted(str(failed)), "cause": failed.cause.value})
        spared = (graph.Step.PREPARE_DATA, graph.Step.CLOSE_SEGMENT, graph.Step.CONTINUE_EXPERIMENT, self.task_id)
        self.skip(context["ti"], [task for task in self.dag.tasks if task.task_id not in spared])


class LineageStep(SegmentStep):
    """A step that says what went in and what came out, where Airflow's OpenLineage provider asks."""

    def lineage(self, run: SegmentRun) -> Lineage:
        """Read from the ledger, once the step has ended."""
        raise NotImplementedError

    def get_openlineage_facets_on_complete(self, _task_instance: Any) -> Any:
        """The provider's name for the question; it asks so after a failure too."""
        run = self.segment_run
        return in_openlineage(run.root, self.lineage(run)) if run is not None else None


class PrepareData(LineageStep):
    """Opens the experiment if it may be new, claims its next segment, and has its data set made or verified."""

    def run_of(self, context: Any) -> SegmentRun:
        params = context["params"]
        if params.get("continues"):
            ledger = find_experiment(params["root"], params["experiment"])
        else:
            ledger = open_experiment(submission_from(params))
        key = claim(ledger, params.get("run_id") or context["dag_run"].run_id)
        context["ti"].xcom_push(key=CLAIM, value=key)
        return read_claim(params["root"], key, is_unattended=bool(params.get("unattended")))

    def work(self, run: SegmentRun, context: Any) -> Any:
        try:
            return opening.prepare_data(run, self.keep(context))
        except StepFailed as failed:
            return self.close_early(context, failed)

    def lineage(self, run: SegmentRun) -> Lineage:
        return lineage.of_data_prep(run)


class OpenSegment(SegmentStep):
    """Checks the predecessor, stops and settles what an earlier run of the segment left behind."""

    def work(self, run: SegmentRun, context: Any) -> Any:
        try:
            return opening.open_segment(run)
        except StepFailed as failed:
            return self.close_early(context, failed)


class RungStep(SegmentStep):
    """A step of one rung of the ladder."""

    def __init__(self, *, rung: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rung = rung


class OpenAttempt(RungStep):
    """Takes the token and finds the resume point; its output is one gate request a node."""

    def work(self, run: SegmentRun, context: Any) -> Any:
        return list(opening.open_attempt(run, self.rung))


class GateNode(SegmentStep):
    """Gates one node. Mapped over the requests of `open_attempt`."""

    template_fields: Sequence[str] = ("request",)

    def __init__(self, *, request: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.request = request

    def work(self, run: SegmentRun, context: Any) -> Any:
        context["node"] = self.request.rsplit("/", 1)[-1].removeprefix("gate_node-").removesuffix(".json")
        return stages.gate_node(run, self.request, self.keep(context))


class GateFabric(RungStep):
    """Gates the links between the nodes that passed alone."""

    def work(self, run: SegmentRun, context: Any) -> Any:
        return stages.gate_fabric(run, self.rung, self.keep(context))


class TrainSegment(RungStep, LineageStep):
    """Trains what is left of the segment. Started once an attempt; a later try re-attaches."""

    def work(self, run: SegmentRun, context: Any) -> Any:
        return stages.train_segment(run, self.rung, self.keep(context))

    def lineage(self, run: SegmentRun) -> Lineage:
        return lineage.of_training(run, self.rung)


class ValidateCheckpoint(RungStep, LineageStep):
    """Judges the attempt's last candidate."""

    def work(self, run: SegmentRun, context: Any) -> Any:
        return stages.validate_checkpoint(run, self.rung, self.keep(context))

    def lineage(self, run: SegmentRun) -> Lineage:
        return lineage.of_validation(run, self.rung)


class Verdict(RungStep):
    """Writes the attempt's one decision and takes its branch. Skips at once what the branch cannot reach."""

    ui_color = "#f6e7c1"

    def work(self, run: SegmentRun, context: Any) -> Any:
        action = judging.verdict(run, self.rung)
        if action is None:
            raise NotReached(f"rung {self.rung} was not opened")
        taken = graph.branch_of(action, self.rung)
        context["ti"].xcom_push(key="decision", value=action.value)
        skipped = graph.unreachable_from(self.rung, taken)
        self.skip(context["ti"], [self.dag.get_task(name) for name in skipped])
        return taken


class Evaluate(SegmentStep):
    """Measures the accepted checkpoint."""

    def work(self, run: SegmentRun, context: Any) -> Any:
        return closing.evaluate(run, self.keep(context))


class Promote(SegmentStep):
    """Promotes the checkpoint unless its evaluation shows a regression."""

    def work(self, run: SegmentRun, context: Any) -> Any:
        return closing.promote(run)


class CloseSegment(SegmentStep):
    """Always runs: writes the outcome, mirrors to MLflow, fails the DAG run on a bad outcome. Ends skipped, and nobody is told,
    where another run of the segment took over."""

    ui_color = "#d9e2f3"
    operator_extra_links = (MlflowLink(), ReportLink())
    mlflow_url = ""
    report_url = ""

    def translated(self, context: Any) -> Any:
        """A run that opened nothing is red."""
        try:
            run = self.run_of(context)
        except NotReached as nothing:
            raise AirflowFailException(str(nothing)) from nothing
        return self.work(run, context)

    def work(self, run: SegmentRun, context: Any) -> Any:
        close = closing.close_segment(run, failed=self.failed_early(run, context))
        ledger = run.ledger()
        publish_apart(ledger, is_awaited=closing.lacks_links(ledger) or not closing.may_continue(ledger, close))
        self.mlflow_url, self.report_url = closing.links(run)
        if is_fenced(ledger, run.segment, run.run_index):
            raise AirflowSkipException(f"segment {close.segment}: another run of it took over; {close.message}")
        if close.outcome is Outcome.FAILED and not run.is_unattended:
            raise AirflowFailException(f"segment {close.segment}: {close.message}")
        self.tell(run, close, context)
        return close.outcome.value

    def failed_early(self, run: SegmentRun, context: Any) -> StepFailed | None:
        """What an earlier task of this run closed early with; None where none did."""
        names = [graph.Step.PREPARE_DATA.value, graph.Step.OPEN_SEGMENT.value]
        found = [context["ti"].xcom_pull(task_ids=name, key=FAILURE) for name in names]
        told = next((failure for failure in found if failure), None)
        return opening.failure_of(run, told["message"], Cause(told["cause"])) if told else None

    def tell(self, run: SegmentRun, close: SegmentClosed, context: Any) -> None:
        """People, of what no red task tells them."""
        if close.outcome is Outcome.FAILED:
            Alert()(context)  # unattended: the command says the rest in one line; a red task would print a traceback instead
        if closing.is_on_hold(run.ledger(), close):
            Alert(WAITING)(context)


class ContinueExperiment(TriggerDagRunOperator):
    """In `continuous` mode, triggers the next DAG run under its deterministic id; otherwise skipped."""

    operator_extra_links = ()

    def execute(self, context: Any) -> Any:
        key = context["ti"].xcom_pull(task_ids=graph.Step.PREPARE_DATA.value, key=CLAIM)
        params = context["params"]
        run = read_claim(params["root"], key, is_unattended=bool(params.get("unattended")))
        ledger = run.ledger()
        close = ledger.closed(run.segment, run.run_index)
        segment = next_segment(ledger)
        if ledger.config().schedule != "continuous" or run.is_unattended or close is None or segment is None:
            raise AirflowSkipException("the experiment is complete, or not in continuous mode")
        if not closing.may_continue(ledger, close):
            raise AirflowSkipException("the policy wants a person's word before the next segment")
        self.trigger_run_id = run_id_for(ledger, segment)  # before the look: what is taken up after it had this very id
        newest = last_run(ledger, segment)
        if newest is None or (newest.segment, newest.run_index) != (run.segment, run.run_index):
            raise AirflowSkipException("another run has gone on since this one closed")  # the timer's, or a person's
        self.conf = continuation(ledger)
        return super().execute(context)
