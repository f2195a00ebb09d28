"""A stand-in for Airflow's API server, on loopback: it answers as it is told to, and stumbles as it is told to."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: In place of a status: the connection ends without an answer.
HANGS_UP = 0


class Stumbling(ThreadingHTTPServer):
    """Answers the next requests about runs with these statuses, the last one for ever. `says` replaces every answer's body."""

    statuses: list[int]
    asked: int = 0
    says: bytes | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_status(self) -> int:
        status = self.statuses[min(self.asked, len(self.statuses) - 1)]
        self.asked += 1
        return status


class Door(BaseHTTPRequestHandler):
    server: Stumbling

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/dagRuns"):
            self.answer(self.server.next_status(), {"dag_run_id": asked.get("dag_run_id", "made up")})
        else:
            self.answer(201, {"access_token": "a token"})

    def do_GET(self) -> None:
        self.answer(self.server.next_status(), {"dag_runs": []})

    def answer(self, status: int, document: object) -> None:
        if status == HANGS_UP:
            return
        self.send_response(status)
        self.end_headers()
        self.wfile.write(self.server.says if self.server.says is not None else json.dumps(document).encode())

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def stumbling_airflow() -> Iterator[Stumbling]:
    """The server, until the end of the block."""
    server = Stumbling(("127.0.0.1", 0), Door)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
