"""Tells people what needs them: one CRITICAL event in the log, and one letter to a webhook where an address is set.

Airflow calls it in three places: in the DAG processor when a DAG run failed, in the triggerer when a segment missed its
deadline, in the task that asks a person; and `close_segment` calls it where nobody sees a red task. It trusts neither webhook
nor template, and never raises: a webhook that is down and a template that cannot be rendered are logged, and what was to be
told stays as it is. The address lets anybody write there, so no log line holds it.
"""

import contextlib
import copy
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jinja2
from airflow.sdk import BaseNotifier

logger = logging.getLogger("prunella.alert")

WEBHOOK = "PRUNELLA_ALERT_WEBHOOK"
TEMPLATE = "PRUNELLA_ALERT_TEMPLATE"

#: How long a webhook may take to answer. Source: own choice 2026-11: chat and paging services answer within a second or two.
TIMEOUT_S = 10.0

FAILED = "failed"
LATE = "late"
ASKED = "asked"
WAITING = "waiting"
#: Of each occasion, the name of its event in the log, and what people are told.
OCCASIONS = {
    FAILED: (
        "segment_needs_a_person",
        "prunella: DAG run {{ run_id }} of {{ dag_id }} failed; its close_segment says why",
    ),
    LATE: (
        "segment_is_late",
        "prunella: DAG run {{ run_id }} of {{ dag_id }} has not ended by {{ deadline.deadline_time }}; "
        "`prunella status` says where it is",
    ),
    ASKED: (
        "segment_asks_a_person",
        "prunella: DAG run {{ run_id }} of {{ dag_id }} asks how to go on, and stops if nobody answers in time; "
        "the question is on Airflow's page Required actions, and the log of the verdict before it says why",
    ),
    WAITING: (
        "experiment_waits_for_a_person",
        "prunella: DAG run {{ run_id }} of {{ dag_id }} was accepted, but the next segment waits for a person; "
        "the log of its close_segment says why",
    ),
}
#: The letter where PRUNELLA_ALERT_TEMPLATE names no file. Chat services show `text`.
BODY = {"text": "{{ message }}", "occasion": "{{ occasion }}", "run_id": "{{ run_id }}", "dag_id": "{{ dag_id }}"}


class Alert(BaseNotifier):
    """One occasion, told once.

    The body is JSON whose strings are Jinja templates, so that whatever a run is called, the letter stays JSON. They may
    name `message`, `occasion`, `run_id`, `dag_id`, and whatever else Airflow's context holds at that place: after a
    failure mostly all of it, at a missed deadline `dag_run` and `deadline`. Address and template are read when the alert
    is sent, so that a mistake in them keeps no DAG from being parsed.
    """

    template_fields = ("message", "body")
    render_template_as_native_obj = False  # a run called 12 is no number, whatever the DAG has chosen for its own templates

    def __init__(self, occasion: str = FAILED, context: Any = None) -> None:
        super().__init__(context)
        self.occasion = occasion
        self.event, self.message = OCCASIONS[occasion]
        self.body: Any = BODY

    def __call__(self, context: Any) -> None:
        """Send it now. Rendering changes the notifier, and a DAG keeps its own: so a copy is rendered."""
        super(Alert, copy.copy(self)).__call__({**context})

    def get_template_env(self, dag: Any = None) -> jinja2.Environment:
        """Sandboxed, and an unknown name is an error: not the DAG's own."""
        found: jinja2.Environment = super().get_template_env(None)
        found.undefined = jinja2.StrictUndefined
        return found

    def render_template_fields(self, context: Any, jinja_env: jinja2.Environment | None = None) -> None:
        """The message, then the body, which may quote it."""
        known = {**context, **_names(context), "occasion": self.occasion}
        environment = jinja_env or self.get_template_env()
        self.message = known["message"] = self.render_template(self.message, known, environment)
        try:
            self.body = self.render_template(_template(), known, environment)
        except Exception as error:  # noqa: BLE001 - a person's template may raise anything, and the news matters more than its looks
            logger.error("alert_template_refused advice=mend_%s error=%s", TEMPLATE, error)
            self.body = self.render_template(BODY, known, environment) | {"template_error": f"{TEMPLATE}: {error}"}

    def notify(self, context: Any) -> None:
        """Tell, from the DAG processor or a task."""
        url = self.log_event(context)
        if url:
            with _logged():
                httpx.post(url, json=self.body, timeout=TIMEOUT_S).raise_for_status()

    async def async_notify(self, context: Any) -> None:
        """Tell, from the triggerer, which has other things to do meanwhile."""
        url = self.log_event(context)
        if url:
            with _logged():
                async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
                    (await client.post(url, json=self.body)).raise_for_status()

    def log_event(self, context: Any) -> str | None:
        """Write the event to the log; returns the address of the webhook, if there is one."""
        names = _names(context)
        logger.critical("%s run_id=%s dag_id=%s", self.event, names["run_id"], names["dag_id"])
        return os.environ.get(WEBHOOK)


def _template() -> Any:
    """The body as the person wrote it."""
    path = os.environ.get(TEMPLATE)
    return json.loads(Path(path).read_text()) if path else BODY


def _names(context: Any) -> dict[str, str]:
    """Ids of run and DAG. The triggerer has them as JSON, a task as an object, the DAG processor at times as neither."""
    run, dag = context.get("dag_run"), context.get("dag")
    if isinstance(run, dict):
        return {"run_id": run["dag_run_id"], "dag_id": run["dag_id"]}
    if run is not None:
        return {"run_id": run.run_id, "dag_id": run.dag_id}
    return {"run_id": context.get("run_id", "unknown"), "dag_id": getattr(dag, "dag_id", "unknown")}


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """Around a delivery: how it ended goes to the log, without the address, which httpx puts into what it raises."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        logger.error("alert_refused status=%s advice=check_%s", error.response.status_code, WEBHOOK)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        logger.error("alert_not_delivered error=%s advice=check_%s", type(error).__name__, WEBHOOK)
    else:
        logger.info("alert_delivered")
