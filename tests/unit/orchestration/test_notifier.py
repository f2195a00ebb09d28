"""A failed run becomes one event and one letter, and nothing about an alert can make anything worse."""

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prunella.node_processes import free_port
from prunella.orchestration.notifier import ASKED, FAILED, LATE, TEMPLATE, WAITING, WEBHOOK, Alert
from unit.orchestration.mailbox import Mailbox

RUN_ID, DAG_ID = "demo__seg-0000__r0", "pretrain_segment"
RUN = SimpleNamespace(run_id=RUN_ID, dag_id=DAG_ID, conf={"experiment": "demo"})
IN_TASK = {"dag_run": RUN}
#: What Airflow's triggerer hands to the callback of a deadline (airflow/models/deadline.py, `handle_miss`).
IN_TRIGGERER = {
    "dag_run": {"dag_run_id": RUN_ID, "dag_id": DAG_ID, "conf": {"experiment": "demo"}},
    "deadline": {"id": "0", "deadline_time": "2026-11-21 10:00:00+00:00"},
}
#: What Airflow's DAG processor hands to the callback of a run whose last task it cannot tell.
IN_DAG_PROCESSOR = {"dag": SimpleNamespace(dag_id=DAG_ID), "run_id": RUN_ID, "reason": "task_failure"}


@pytest.fixture(autouse=True)
def _no_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TEMPLATE, raising=False)
    monkeypatch.delenv(WEBHOOK, raising=False)


def use_template(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    path = folder / "alert.json"
    path.write_text(text)
    monkeypatch.setenv(TEMPLATE, str(path))


def send_from_triggerer(alert: Alert) -> None:
    """As Airflow's CallbackTrigger does."""

    async def run() -> None:
        await alert

    asyncio.run(run())


# ------------------------------------------------------------------------------------------------ what is told


def test_a_failed_run_is_one_critical_event_and_one_letter(mailbox: Mailbox, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL, logger="prunella.alert"):
        Alert()(IN_TASK)

    (letter,) = mailbox.letters
    assert (letter["run_id"], letter["dag_id"], letter["occasion"]) == (RUN_ID, DAG_ID, FAILED)
    assert "close_segment says why" in letter["text"]
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]


def test_a_missed_deadline_is_told_from_the_triggerer(mailbox: Mailbox, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL, logger="prunella.alert"):
        send_from_triggerer(Alert(LATE, context=IN_TRIGGERER))

    (letter,) = mailbox.letters
    assert (letter["run_id"], letter["dag_id"], letter["occasion"]) == (RUN_ID, DAG_ID, LATE)
    assert "has not ended by 2026-11-21 10:00:00" in letter["text"]
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]


@pytest.mark.parametrize(
    ("occasion", "event", "words"),
    [
        (ASKED, "segment_asks_a_person", "Required actions"),
        (WAITING, "experiment_waits_for_a_person", "the next segment waits for a person"),
    ],
)
def test_where_a_person_is_waited_for_the_letter_says_where_to_look(
    mailbox: Mailbox, caplog: pytest.LogCaptureFixture, occasion: str, event: str, words: str
) -> None:
    with caplog.at_level(logging.CRITICAL, logger="prunella.alert"):
        Alert(occasion)(IN_TASK)

    (letter,) = mailbox.letters
    assert (letter["run_id"], letter["dag_id"], letter["occasion"]) == (RUN_ID, DAG_ID, occasion)
    assert words in letter["text"]
    assert [record.getMessage().partition(" ")[0] for record in caplog.records] == [event]


def test_a_run_whose_task_is_not_known_is_told_all_the_same(mailbox: Mailbox) -> None:
    Alert()(IN_DAG_PROCESSOR)

    assert [(letter["run_id"], letter["dag_id"]) for letter in mailbox.letters] == [(RUN_ID, DAG_ID)]


def test_a_notifier_that_a_dag_keeps_tells_of_each_run_as_it_is(mailbox: Mailbox) -> None:
    alert = Alert()

    for run_id in ("first", "second"):
        alert({"dag_run": SimpleNamespace(run_id=run_id, dag_id=DAG_ID)})

    assert [letter["run_id"] for letter in mailbox.letters] == ["first", "second"]


def test_without_an_address_nothing_is_posted(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEBHOOK)

    Alert()(IN_TASK)
    send_from_triggerer(Alert(LATE, context=IN_TRIGGERER))

    assert mailbox.letters == []


# ------------------------------------------------------------------------------------------------ the template


def test_a_template_decides_the_letter(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_template(
        monkeypatch,
        tmp_path,
        '{"summary": "{{ message }}", "severity": 2, "labels": ["{{ occasion }}", "{{ dag_run.conf.experiment }}"]}',
    )

    Alert()(IN_TASK)
    send_from_triggerer(Alert(LATE, context=IN_TRIGGERER))

    assert [letter["labels"] for letter in mailbox.letters] == [[FAILED, "demo"], [LATE, "demo"]]
    assert all(letter["summary"].startswith(f"prunella: DAG run {RUN_ID}") for letter in mailbox.letters)
    assert [letter["severity"] for letter in mailbox.letters] == [2, 2]


def test_what_a_run_is_called_cannot_change_the_shape_of_a_letter(mailbox: Mailbox) -> None:
    name = '", "text": {{ 7 * 7 }} \\ \n'

    Alert()({"dag_run": SimpleNamespace(run_id=name, dag_id=DAG_ID)})

    assert [letter["run_id"] for letter in mailbox.letters] == [name]


def test_numbers_in_names_stay_text_although_the_dag_renders_native_objects(mailbox: Mailbox) -> None:
    from airflow.sdk import DAG

    dag = DAG(dag_id="d", schedule=None, render_template_as_native_obj=True)

    Alert()({"dag": dag, "dag_run": SimpleNamespace(run_id="12", dag_id=DAG_ID)})

    assert [letter["run_id"] for letter in mailbox.letters] == ["12"]


@pytest.mark.parametrize(
    "text",
    ["{", '{"a": "{{ unknown_name }}"}', '{"a": "{{ 1 / 0 }}"}', '{"a": "{% if %}"}', '{"a": "{{ [].__class__.mro() }}"}'],
    ids=["not JSON", "unknown name", "raises", "not a template", "leaves the sandbox"],
)
def test_a_template_that_cannot_be_used_costs_its_looks_and_not_the_letter(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    use_template(monkeypatch, tmp_path, text)

    Alert()(IN_TASK)

    (letter,) = mailbox.letters
    assert letter["run_id"] == RUN_ID
    assert letter["template_error"].startswith(TEMPLATE)


def test_a_template_that_is_not_there_costs_its_looks_and_not_the_letter(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(TEMPLATE, str(tmp_path / "gone.json"))

    Alert()(IN_TASK)

    (letter,) = mailbox.letters
    assert "gone.json" in letter["template_error"]


# ------------------------------------------------------------------------------------------------ nothing gets worse


def refused() -> str:
    return Mailbox(status=500).address


def nobody_there() -> str:
    return f"http://127.0.0.1:{free_port()}/hook-secret"


def no_address() -> str:
    return "hook-secret"


def no_port() -> str:
    return "http://127.0.0.1:hook-secret/"


@pytest.mark.parametrize("address", [refused, nobody_there, no_address, no_port])
def test_a_webhook_that_is_down_is_logged_without_its_address_and_raises_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, address: Any
) -> None:
    monkeypatch.setenv(WEBHOOK, address())

    with caplog.at_level(logging.WARNING):
        Alert()(IN_TASK)
        send_from_triggerer(Alert(LATE, context=IN_TRIGGERER))

    assert [record.levelname for record in caplog.records] == ["CRITICAL", "ERROR"] * 2
    assert "hook-secret" not in caplog.text
