"""The operators translate: how a step ended becomes Airflow's word for it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from prunella.errors import Cause, ConfigError, StorageUnavailable
from prunella.launch.handle import Process
from prunella.orchestration import closing
from prunella.orchestration.airflow_operators import OpenSegment, SegmentStep, submission_from
from prunella.orchestration.stages import NotReached
from prunella.records import Action
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


def test_the_handle_of_a_stage_is_kept_where_the_next_try_finds_it() -> None:
    store: dict[str, Any] = {}
    keeper = SimpleNamespace(get=store.get, set=store.__setitem__)

    step_that(None).keep({"task_state_store": keeper})(Process(pid=12, started_s=3.5))

    assert store == {"stage_process": {"pid": 12, "started_s": 3.5}}


def test_a_form_with_empty_fields_asks_for_nothing() -> None:
    asked = submission_from({"root": "/r", "experiment": "demo", "recipe": "", "segments": None, "faults": [], "set": []})

    assert not asked.is_configured
    assert (asked.root, asked.experiment, asked.faults) == ("/r", "demo", ())


@pytest.mark.parametrize(("cause", "is_fenced"), [(Cause.FENCED, True), (Cause.PROCESS_CRASH, False)])
def test_a_run_that_another_took_over_pages_nobody(tmp_path: Path, cause: Cause, is_fenced: bool) -> None:
    story = Story(str(tmp_path)).begin()
    run = story.open_run()
    story.decide(story.open_attempt(run, 0), Action.STOP, incidents=(incident(cause, Action.STOP),))

    assert closing.is_fenced(run) == is_fenced
