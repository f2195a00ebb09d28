"""The door to a running Airflow: what it does when Airflow stumbles."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from prunella.errors import PrunellaError
from prunella.orchestration import live


class Stumbling(ThreadingHTTPServer):
    """Answers the next requests for a run with these statuses, the last one for ever."""

    statuses: list[int]
    asked: int = 0


class Door(BaseHTTPRequestHandler):
    server: Stumbling

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, answer = 201, {"access_token": "a token"}
        if self.path.endswith("/dagRuns"):
            status = self.server.statuses[min(self.server.asked, len(self.server.statuses) - 1)]
            self.server.asked += 1
            answer = {"dag_run_id": asked.get("dag_run_id", "made up")}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stumbling]:
    monkeypatch.setattr(live, "_STUMBLE_S", 0.01)
    server = Stumbling(("127.0.0.1", 0), Door)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def start(airflow: Stumbling, run_id: str | None) -> str:
    api = live.AirflowApi(f"http://127.0.0.1:{airflow.server_address[1]}", "admin", "secret")
    return api.trigger("pretrain_segment", conf={}, run_id=run_id)


def test_a_run_with_an_id_is_asked_for_again_while_airflow_stumbles(airflow: Stumbling) -> None:
    airflow.statuses = [500, 503, 200]

    assert start(airflow, "demo__seg-0000__r0") == "demo__seg-0000__r0"
    assert airflow.asked == 3


def test_a_run_that_was_started_before_airflow_stumbled_is_started(airflow: Stumbling) -> None:
    airflow.statuses = [500, 409]

    assert start(airflow, "demo__seg-0000__r0") == "demo__seg-0000__r0"


def test_an_airflow_that_never_rises_is_one_error(airflow: Stumbling) -> None:
    airflow.statuses = [500]

    with pytest.raises(PrunellaError, match="refused to start pretrain_segment: 500"):
        start(airflow, "demo__seg-0000__r0")
    assert airflow.asked == 4


@pytest.mark.parametrize(("status", "run_id"), [(500, None), (409, "demo__seg-0000__r0")])
def test_a_run_that_might_start_twice_and_a_plain_refusal_are_not_asked_for_again(
    airflow: Stumbling, status: int, run_id: str | None
) -> None:
    airflow.statuses = [status]

    with pytest.raises(PrunellaError, match=str(status)):
        start(airflow, run_id)
    assert airflow.asked == 1
