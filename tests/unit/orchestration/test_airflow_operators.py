"""The operators translate: how a step ended becomes Airflow's word for it."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, DagRunTriggerException

from prunella.config import Config
from prunella.errors import Cause, ConfigError, StorageUnavailable
from prunella.launch.handle import Process
from prunella.orchestration import closing
from prunella.orchestration.airflow_operators import (
    CLAIM,
    CloseSegment,
    ContinueExperiment,
    OpenSegment,
    PrepareData,
    SegmentStep,
    submission_from,
)
from prunella.orchestration.claim import SegmentRun, claim_key
from prunella.orchestration.opening import StepFailed
from prunella.orchestration.stages import NotReached
from prunella.records import Action, Outcome
from unit.orchestration.mailbox import Mailbox
from unit.orchestration.story import Story, incident


def step_that(raises: Exception | None, gives: object = None) -> SegmentStep:
    """A step that ends in one way."""

    class OneEnd(SegmentStep):
        def run_of(self, context: Any) -> Any:
            return None

        def work(self, run: Any, context: Any) -> Any:
            if raises is not None:
                raise raises
            return gives

    return OneEnd(task_id="one_end")


# ------------------------------------------------------------------------------------------------ ends


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (NotReached("not admitted"), AirflowSkipException),
        (ConfigError("unknown key"), AirflowFailException),
        (StorageUnavailable("away"), StorageUnavailable),
    ],
    ids=["skipped", "failed at once", "tried again by Airflow"],
)
def test_each_end_of_a_step_has_its_word_in_airflow(raised: Exception, expected: type[Exception]) -> None:
    with pytest.raises(expected, match=str(raised)):
        step_that(raised).execute({"params": {}})


def test_what_a_step_gives_is_passed_on() -> None:
    assert step_that(None, gives="key").execute({"params": {}}) == "key"


def test_a_run_that_claimed_nothing_skips_its_steps() -> None:
    context = {"ti": SimpleNamespace(xcom_pull=lambda **_: None), "params": {"root": "/nowhere"}}

    with pytest.raises(NotReached, match="see the log of prepare_data"):
        OpenSegment(task_id="open_segment").run_of(context)


@pytest.mark.parametrize("root", ["there", "away"])
def test_a_run_that_continues_an_experiment_never_opens_another(tmp_path: Path, root: str) -> None:
    Story(str(tmp_path / "there")).begin()
    params = {"root": str(tmp_path / root), "experiment": "demo" if root == "away" else "mistyped", "continues": True}

    with pytest.raises(ConfigError, match=r"no such (folder|experiment)"):
        PrepareData(task_id="prepare_data").run_of({"params": params})

    assert not (tmp_path / "away").exists()
    assert not (tmp_path / "there" / "experiments" / "mistyped").exists()


def test_the_first_close_waits_for_what_its_links_lead_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow keeps the links as they are when the task ends. The publication here takes half a second."""
    story = Story(str(tmp_path / "root")).begin()
    run = story.open_run()
    story.close(run, Outcome.ACCEPTED, attempt=0)
    publisher = tmp_path / "publisher"
    note = tmp_path / "root" / "published" / "demo" / "mlflow.json"
    publisher.write_text(f"""#!/bin/sh\nsleep 0.5\necho '{{"run_id": "abc", "experiment_id": "7"}}' > {note}\n""")
    publisher.chmod(0o700)
    monkeypatch.setenv("PRUNELLA_PYTHON", str(publisher))
    monkeypatch.setenv("PRUNELLA_MLFLOW_UI", "http://127.0.0.1:5000")
    step = CloseSegment(task_id="close_segment")

    outcome = step.work(run, {"ti": SimpleNamespace(xcom_pull=lambda **_: None), "params": {}})

    assert outcome == Outcome.ACCEPTED
    assert step.mlflow_url == "http://127.0.0.1:5000/#/experiments/7/runs/abc"
    assert step.report_url == f"{step.mlflow_url}/artifacts/report.html"
    assert not closing.lacks_links(story.ledger)


def test_where_there_are_no_pages_no_close_waits_for_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRUNELLA_MLFLOW_UI", raising=False)

    assert not closing.lacks_links(Story(str(tmp_path)).begin().ledger)


def test_the_handle_of_a_stage_is_kept_where_the_next_try_finds_it() -> None:
    store: dict[str, Any] = {}
    keeper = SimpleNamespace(get=store.get, set=store.__setitem__)

    step_that(None).keep({"task_state_store": keeper})(Process(pid=12, started_s=3.5))

    assert store == {"stage_process": {"pid": 12, "started_s": 3.5}}


def test_a_form_with_empty_fields_asks_for_nothing() -> None:
    asked = submission_from({"root": "/r", "experiment": "demo", "recipe": "", "segments": None, "faults": [], "set": []})

    assert not asked.is_configured
    assert (asked.root, asked.experiment, asked.faults) == ("/r", "demo", ())


# ------------------------------------------------------------------------------------------------ going on


def fence(story: Story, run: SegmentRun) -> None:
    """The run opens an attempt, loses its token, and closes."""
    lost = incident(Cause.FENCED, Action.STOP)
    story.decide(story.open_attempt(run), Action.STOP, incidents=(lost,))
    story.close(run, Outcome.FAILED)


def going_on(story: Story) -> ContinueExperiment:
    """The operator that goes on with the experiment after its first segment, executed."""
    step = ContinueExperiment(task_id="continue_experiment", trigger_dag_id="pretrain_segment")
    key = claim_key(story.ledger, 0, 0)
    context = {"ti": SimpleNamespace(xcom_pull=lambda **_: key), "params": {"root": story.root}}
    with pytest.raises(DagRunTriggerException):  # Airflow's word for: whoever runs the task, start that run
        step.execute(context)
    return step


def test_a_continuous_experiment_goes_on_with_its_next_segment(tmp_path: Path) -> None:
    story = Story(str(tmp_path), config=Config(schedule="continuous")).begin()
    story.close(story.open_run(), Outcome.ACCEPTED, attempt=0)

    assert going_on(story).trigger_run_id == "demo__seg-0001__r0"


def test_a_run_after_which_another_has_gone_on_starts_no_third(tmp_path: Path) -> None:
    """Between its close and this task its publication may be waited for; the timer looks every minute."""
    story = Story(str(tmp_path), config=Config(schedule="continuous")).begin()
    story.close(story.open_run(), Outcome.ACCEPTED, attempt=0)
    story.open_run(1)

    with pytest.raises(AirflowSkipException, match="another run has gone on"):
        going_on(story)


def test_a_run_that_fenced_a_newer_one_goes_on(tmp_path: Path) -> None:
    story = Story(str(tmp_path), config=Config(schedule="continuous")).begin()
    taking = story.open_run()
    fence(story, story.open_run(run_index=1))
    story.close(taking, Outcome.ACCEPTED, attempt=1)

    assert going_on(story).trigger_run_id == "demo__seg-0001__r0"


# ------------------------------------------------------------------------------------------------ the close


@pytest.mark.parametrize(
    ("cause", "is_unattended", "end", "occasions"),
    [
        (Cause.FENCED, False, AirflowSkipException, []),
        (Cause.FENCED, True, AirflowSkipException, []),
        (Cause.PROCESS_CRASH, False, AirflowFailException, []),  # red: the DAG tells of it (test_scheduler.py)
        (Cause.PROCESS_CRASH, True, None, ["failed"]),
    ],
)
def test_the_close_of_a_run_that_another_took_over_is_skipped_and_pages_nobody(
    mailbox: Mailbox,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    cause: Cause,
    is_unattended: bool,
    end: type[Exception] | None,
    occasions: list[str],
) -> None:
    story = Story(str(tmp_path)).begin()
    run = story.open_run()
    story.decide(story.open_attempt(run), Action.STOP, incidents=(incident(cause, Action.STOP),))
    monkeypatch.setenv("PRUNELLA_PYTHON", "true")  # publishes nothing
    pushed = {CLAIM: claim_key(story.ledger, 0, 0)}
    context = {
        "ti": SimpleNamespace(xcom_pull=lambda *, task_ids, key: pushed.get(key)),
        "params": {"root": story.root, "unattended": is_unattended},
        "dag_run": SimpleNamespace(run_id=run.run_id, dag_id="pretrain_segment"),
    }

    with pytest.raises(end, match="segment 0") if end else nullcontext():
        CloseSegment(task_id="close_segment").execute(context)

    assert [letter["occasion"] for letter in mailbox.letters] == occasions
    close = story.ledger.closed(0, 0)
    assert close is not None
    assert close.outcome is Outcome.FAILED


@pytest.mark.parametrize(
    ("segment", "action", "occasions"),
    [(0, Action.ASK, ["waiting"]), (0, Action.STOP, ["waiting"]), (0, Action.ACCEPT, []), (1, Action.ASK, [])],
    ids=["a person decides", "nobody is there to ask", "goes on", "nothing follows"],
)
def test_an_accepted_segment_after_which_the_experiment_waits_is_told(
    mailbox: Mailbox, tmp_path: Path, segment: int, action: Action, occasions: list[str]
) -> None:
    story = Story(str(tmp_path)).begin()
    for earlier in range(segment):
        story.accept_segment(earlier)
    run = story.open_run(segment)
    close = story.close(run, Outcome.ACCEPTED, incidents=(incident(Cause.QUALITY_REGRESSION, action),))

    CloseSegment(task_id="close_segment").tell(run, close, {"dag_run": SimpleNamespace(run_id=run.run_id, dag_id="d")})

    assert [letter["occasion"] for letter in mailbox.letters] == occasions


def test_what_failed_before_the_attempts_reaches_the_close_with_its_cause(tmp_path: Path) -> None:
    run = Story(str(tmp_path)).begin().open_run()
    pushed: dict[tuple[str, str], Any] = {}
    failing = SimpleNamespace(xcom_push=lambda *, key, value: pushed.update({("open_segment", key): value}))
    closes = SimpleNamespace(xcom_pull=lambda *, task_ids, key: pushed.get((task_ids, key)))
    with DAG(dag_id="of_one_task", schedule=None):
        step = OpenSegment(task_id="open_segment")

    nothing = CloseSegment(task_id="close_segment").failed_early(run, {"ti": closes})
    step.close_early({"ti": failing}, StepFailed(None, "no pod sees the corpus", Cause.CONFIG_ERROR))
    found = CloseSegment(task_id="close_segment").failed_early(run, {"ti": closes})

    assert nothing is None
    assert found is not None
    assert (str(found), found.cause) == ("no pod sees the corpus", Cause.CONFIG_ERROR)


def test_what_travels_by_xcom_holds_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hunter2-in-the-environment")
    pushed: list[Any] = []
    failing = SimpleNamespace(xcom_push=lambda *, key, value: pushed.append((key, value)))
    with DAG(dag_id="of_one_task", schedule=None):
        step = OpenSegment(task_id="open_segment")

    step.close_early({"ti": failing}, StepFailed(None, "refused: hunter2-in-the-environment", Cause.STORAGE_UNAVAILABLE))

    assert pushed == [("failure", {"message": "refused: ***", "cause": "storage_unavailable"})]
