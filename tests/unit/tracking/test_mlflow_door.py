"""Behind the door is a server that refuses, hangs up, or is asked by two at once. Each ends well, or in one clear line."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from prunella.errors import TrackingUnavailable
from prunella.tracking.mirror import mirror
from prunella.tracking.mirror_runs import mlflow_experiment
from prunella.tracking.mlflow_door import opened
from unit.tracking.campaign import open_campaign

mlflow = pytest.importorskip("mlflow", reason="needs the component extra (mlflow)")

PASSWORD = "hunter2-of-the-tracking-server"
FOUND = (200, {"experiment": {"experiment_id": "7", "name": "prunella", "lifecycle_stage": "active"}})
ABSENT = (404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "No such experiment"})
EXISTS = (400, {"error_code": "RESOURCE_ALREADY_EXISTS", "message": "Experiment(name=prunella) already exists"})

Answer = tuple[int, dict[str, Any] | str] | None


@dataclass
class Stub:
    """A tracking server of a few answers. `answers` maps the end of a path to what it says, in order; None hangs up."""

    answers: dict[str, list[Answer]]
    asked: list[str] = field(default_factory=list)
    uri: str = ""

    def next_answer(self, path: str) -> Answer:
        self.asked.append(path)
        known = self.answers.get(path, [(404, {"error_code": "ENDPOINT_NOT_FOUND", "message": path})])
        return known.pop(0) if len(known) > 1 else known[0]


@pytest.fixture
def served() -> Iterator[Callable[[Stub], Stub]]:
    """Serves a stub until the test is over."""
    servers: list[ThreadingHTTPServer] = []
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()

    def serve(stub: Stub) -> Stub:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(stub))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stub.uri = f"http://127.0.0.1:{server.server_port}"
        return stub

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()
    mlflow.set_tracking_uri(before[0])
    mlflow.set_registry_uri(before[1])


def _handler(stub: Stub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def serve(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = stub.next_answer(self.path.partition("?")[0].partition("/mlflow/")[2])
            if answer is None:
                self.connection.shutdown(2)
                return
            status, content = answer
            body = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = serve

        def log_message(self, *_arguments: object) -> None:
            """Quiet: `Stub.asked` says what was asked."""

    return Handler


def test_a_run_whose_making_was_not_answered_is_not_made_a_second_time(served: Callable[[Stub], Stub], tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path))
    stub = served(Stub({"experiments/get-by-name": [FOUND], "runs/search": [(200, {})], "runs/create": [None]}))

    with pytest.raises(TrackingUnavailable, match="the ledger is whole"):
        mirror(campaign.ledger, uri=stub.uri)

    assert stub.asked.count("runs/create") == 1


def test_a_question_that_was_not_answered_is_asked_a_second_time(served: Callable[[Stub], Stub]) -> None:
    stub = served(Stub({"experiments/get-by-name": [None, FOUND]}))

    with opened(stub.uri, timeout_s=30.0) as door:
        found = mlflow_experiment(door, "prunella")

    assert found == "7"


def test_two_that_make_the_same_mlflow_experiment_at_once_share_it(served: Callable[[Stub], Stub]) -> None:
    stub = served(Stub({"experiments/get-by-name": [ABSENT, FOUND], "experiments/create": [EXISTS]}))

    with opened(stub.uri, timeout_s=30.0) as door:
        found = mlflow_experiment(door, "prunella")

    assert found == "7"


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"MLFLOW_TRACKING_USERNAME": "trainer", "MLFLOW_TRACKING_PASSWORD": PASSWORD}, "found the two that are set"),
        ({"MLFLOW_TRACKING_USERNAME": "trainer"}, "found MLFLOW_TRACKING_PASSWORD not set"),
        ({}, "found MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD not set"),
    ],
    ids=["wrong", "half", "none"],
)
def test_a_refused_password_is_one_line_that_names_the_variables_and_never_the_password(
    served: Callable[[Stub], Stub],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    found: str,
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    campaign = open_campaign(str(tmp_path))
    stub = served(Stub({"experiments/get-by-name": [(401, "You are not authenticated.")]}))

    with pytest.raises(TrackingUnavailable) as caught:
        mirror(campaign.ledger, uri=stub.uri)

    message = str(caught.value)
    assert "expected its name and password in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in message
    assert found in message
    assert (message.count("\n"), PASSWORD in message) == (0, False)


def test_a_user_who_may_only_read_is_one_line_that_says_what_to_ask_for(served: Callable[[Stub], Stub], tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path))
    answers: dict[str, list[Answer]] = {
        "experiments/get-by-name": [FOUND],
        "runs/search": [(200, {})],
        "runs/create": [(403, "Permission denied")],
    }
    stub = served(Stub(answers))

    with pytest.raises(TrackingUnavailable, match="403, it does not let the user of MLFLOW_TRACKING_USERNAME"):
        mirror(campaign.ledger, uri=stub.uri)


def test_where_the_server_is_stays_behind_the_door(served: Callable[[Stub], Stub]) -> None:
    """MLflow's client writes the address into the environment: another program started here would talk to that server."""
    stub = served(Stub({}))
    before = dict(os.environ)

    with opened(stub.uri, timeout_s=5.0):
        pass

    assert dict(os.environ) == before
