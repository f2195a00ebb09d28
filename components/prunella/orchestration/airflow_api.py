"""The public REST API of an Airflow: what the command line, the demonstration and the stack ask of one that runs.

Decides nothing. Every way in which the address may fail to be an Airflow is one error, `AirflowAway`; what Airflow refuses is
told in its own words.
"""

import contextlib
import time
from typing import Any

import httpx

from prunella.errors import PrunellaError

#: Time a fresh Airflow may take to answer. Source: own measurement 2026-11: 20 to 40 s on 2 cores, tripled.
START_TIMEOUT_S = 180.0
#: Between two tries to start a run. Source: own observation 2026-11: on SQLite one demonstration of many met a database error
#: (500) in its first second.
_STUMBLE_S = 2.0
_TRIES = 4
#: So much of an answer is quoted. Source: own choice 2026-11: Airflow's refusals are a line, pages of others are not.
_QUOTED = 300


class AirflowAway(PrunellaError):
    """No Airflow answers at the address, or it stumbled over what it was asked. Transient: it may be asked again."""


class AirflowApi:
    """The public REST API of an Airflow, as a logged-in user.

    Every method raises AirflowAway where no Airflow answers, and PrunellaError, with Airflow's own words, where it refuses.
    """

    def __init__(self, url: str, user: str, secret: str) -> None:
        self._url = url.rstrip("/")
        self._credentials = {"username": user, "password": secret}
        self._client = httpx.Client(timeout=30.0, trust_env=False)

    def wait_until_ready(self, dag_id: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until the scheduler is healthy and the DAG is known.

        Raises:
            PrunellaError: not within the time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(AirflowAway):  # it is coming up
                if self._is_healthy() and self._knows(dag_id):
                    return
            time.sleep(1.0)
        raise PrunellaError(f"Airflow at {self._url} was not ready within {timeout_s:g} s; see the logs folder beside it")

    def _is_healthy(self) -> bool:
        answer = self._call("GET", "/api/v2/monitor/health")
        return answer.is_success and self._said(answer, "scheduler").get("status") == "healthy"

    def _knows(self, dag_id: str) -> bool:
        self.log_in()
        return self._call("GET", f"/api/v2/dags/{dag_id}").is_success

    def log_in(self) -> None:
        """Take a token; the API answers 201."""
        answer = self._call("POST", "/auth/token", json=self._credentials)
        user = self._credentials["username"]
        self._check(answer, f"the login of {user!r}; user and password are those that `make up` prints")
        self._client.headers["Authorization"] = f"Bearer {self._said(answer, 'access_token')}"

    def _call(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Airflow's answer to a request; it may be a refusal, but no stumble."""
        try:
            answer = self._client.request(method, f"{self._url}{path}", **request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._away(str(error) or type(error).__name__) from error
        if answer.is_server_error:
            raise self._away(f"{answer.status_code} {_quoted(answer)}")
        return answer

    def _said(self, answer: httpx.Response, field: str) -> Any:
        """A field of Airflow's answer, which somebody else's would not have."""
        try:
            return answer.json()[field]
        except (ValueError, LookupError, TypeError) as error:
            raise self._away(f"an answer without {field!r}: {_quoted(answer)}") from error

    def _away(self, found: str) -> AirflowAway:
        return AirflowAway(
            f"expected an Airflow that answers at {self._url}, found: {found}; see that it is up and that this is its address, "
            "http://HOST:PORT as `make up` prints it"
        )

    def _check(self, answer: httpx.Response, asked: str) -> None:
        if not answer.is_success:
            raise PrunellaError(f"Airflow at {self._url} said {answer.status_code} {_quoted(answer)}, refusing {asked}")

    def trigger(self, dag_id: str, *, conf: dict[str, Any], run_id: str | None = None) -> str:
        """Start a DAG run; returns its id. With an id of its own a run is asked for again while Airflow stumbles."""
        self.log_in()
        body = {"conf": conf, "logical_date": None} | ({"dag_run_id": run_id} if run_id else {})
        answer, stumbles = self._persist("POST", f"/api/v2/dags/{dag_id}/dagRuns", body, tries=_TRIES if run_id else 1)
        if run_id and answer.status_code == httpx.codes.CONFLICT:
            if stumbles:
                return run_id  # a try before started it, and its answer was lost
            raise PrunellaError(
                f"Airflow at {self._url} has a run {run_id} of {dag_id} already (409); where it waits or runs, leave it; where "
                f"it failed, see its log ({self._url}/dags/{dag_id}/runs/{run_id}), mend what that says, then clear it there"
            )
        self._check(answer, f"to start {dag_id}; its page is {self._url}/dags/{dag_id}")
        return str(self._said(answer, "dag_run_id"))

    def _persist(self, method: str, path: str, body: dict[str, Any], *, tries: int) -> tuple[httpx.Response, int]:
        """The answer to a request that may be made again, and over how many tries before it Airflow stumbled."""
        for stumbles in range(tries - 1):
            with contextlib.suppress(AirflowAway):
                return self._call(method, path, json=body), stumbles
            time.sleep(_STUMBLE_S)
        return self._call(method, path, json=body), tries - 1

    def run_states(self, dag_id: str) -> dict[str, str]:
        """State of every DAG run, by id."""
        self.log_in()
        answer = self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns", params={"limit": 100})
        self._check(answer, f"to list the runs of {dag_id}")
        return {run["dag_run_id"]: run["state"] for run in self._said(answer, "dag_runs")}

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str]:
        """State of every task of a run, by task id (the last of a mapped task's)."""
        self.log_in()
        answer = self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances", params={"limit": 200})
        self._check(answer, f"to list the tasks of {run_id}")
        return {task["task_id"]: str(task["state"]) for task in self._said(answer, "task_instances")}

    def answer(self, dag_id: str, run_id: str, task_id: str, option: str) -> None:
        """Answer a task that waits for a person, as the page *Required actions* does."""
        self.log_in()
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/-1/hitlDetails"
        answer = self._call("PATCH", path, json={"chosen_options": [option], "params_input": {}})
        self._check(answer, f"the answer {option!r} to {task_id}")


def _quoted(answer: httpx.Response) -> str:
    """What was answered, on one line and cut short."""
    return " ".join(answer.text.split())[:_QUOTED] or "(nothing)"
