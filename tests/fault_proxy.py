"""A proxy that misbehaves between a client and an S3 server, by a schedule that a seed determines.

It cuts requests and answers at any byte, delays, answers 500, 503 and SlowDown, goes silent for a while, and lies: it says
that a write succeeded and throws it away. Each request draws its fault; `faults` lists what was done, so that a test can say
that something was, and `requests` what was asked for.
"""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

#: What may happen to a request, and how often. The rest passes.
ODDS = {
    "cut the request": 0.06,
    "cut the answer": 0.06,
    "lose the answer": 0.05,
    "500": 0.04,
    "503": 0.04,
    "SlowDown": 0.04,
    "delay": 0.05,
    "lie": 0.03,
}
DELAY_S = 0.2
_ERROR = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>a test asked for it</Message></Error>'
_STATUS = {"500": (500, "InternalError"), "503": (503, "ServiceUnavailable"), "SlowDown": (503, "SlowDown")}
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass
class Schedule:
    """Draws the fault of each request. One lock: the draws, not the requests, are in order."""

    seed: int
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    is_off: bool = False

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()

    def draw(self, method: str, path: str) -> tuple[str, float]:
        """The fault of the next request ("" for none), and a number in [0, 1) for where it strikes."""
        with self._lock:
            names, odds = [*ODDS, ""], [*ODDS.values(), 1.0 - sum(ODDS.values())]
            fault = self._random.choices(names, odds)[0]
            where = self._random.random()
            if self.is_off or (fault == "lie" and method != "PUT"):
                fault = ""
            if fault:
                self.faults.append(fault)
            return fault, where


@contextmanager
def fault_proxy(upstream: str, seed: int) -> Iterator[tuple[str, Schedule]]:
    """A proxy in front of `upstream`; its address, and what it does."""
    schedule = Schedule(seed=seed)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(urlsplit(upstream).netloc, schedule))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", schedule
    finally:
        server.shutdown()
        server.server_close()


def _handler(upstream: str, schedule: Schedule) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self) -> None:
            schedule.requests.append(f"{self.command} {self.path}")
            fault, where = schedule.draw(self.command, self.path)
            if self.headers.get("Expect", "").lower() == "100-continue":
                self.send_response_only(100)
                self.end_headers()
            length = int(self.headers.get("Content-Length") or 0)
            if fault == "cut the request":
                self.rfile.read(int(length * where))
                self.hang_up()
                return
            body = self.rfile.read(length)
            if fault == "delay":
                time.sleep(DELAY_S)
            if fault in _STATUS:
                self.answer(_STATUS[fault][0], {}, _ERROR.format(code=_STATUS[fault][1]).encode())
            elif fault == "lie":
                self.answer(200, {"ETag": '"0"'}, b"")
            else:
                self.forward(body, fault, where)

        def forward(self, body: bytes, fault: str, where: float) -> None:
            connection = HTTPConnection(upstream, timeout=30)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in {*_HOP, "expect"}}
            connection.request(self.command, self.path, body=body or None, headers=headers)
            found = connection.getresponse()
            content = found.read()
            connection.close()
            if fault == "lose the answer":
                self.hang_up()
                return
            length = found.getheader("Content-Length")
            given = {name: value for name, value in found.getheaders() if name.lower() not in {*_HOP, "server", "date"}}
            cut = int(len(content) * where) if fault == "cut the answer" else None
            self.answer(found.status, given, content, length=length, cut=cut)

        def answer(
            self, status: int, headers: dict[str, str], content: bytes, *, length: str | None = None, cut: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content if cut is None else content[:cut])
            if cut is not None and cut < len(content):
                self.hang_up()

        def hang_up(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(2)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = serve

        def log_message(self, *_arguments: object) -> None:
            """Quiet: `Schedule.faults` says what happened."""

    return Handler
