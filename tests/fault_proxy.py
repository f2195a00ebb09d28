"""A proxy that misbehaves between a client and an S3 server, by a schedule that a seed determines.

It cuts requests and answers at any byte, of their headers and status lines too, delays, answers 500, 503 and SlowDown, goes
away for a moment in which nobody gets an answer, and lies: it says that a write or a deletion succeeded and throws it away.
Each request draws its fault; `faults` lists what was done, so that a test can say that something was, and `requests` what was
asked for. Where a test asks for it, it also flips a byte, drips, or hides the MD5s of what is stored.
"""

import random
import re
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
    "cut the request": 0.05,
    "cut the answer": 0.05,
    "cut the headers": 0.05,
    "cut the status line": 0.02,
    "lose the answer": 0.04,
    "500": 0.03,
    "503": 0.03,
    "SlowDown": 0.03,
    "delay": 0.05,
    "go away": 0.01,
    "lie": 0.03,
}
DELAY_S = 0.2
AWAY_S = 0.2
#: Drawn by no schedule, because a read that nothing proves cannot heal them; a test asks for them.
FLIP_REQUEST, FLIP_ANSWER = "flip a byte of the request", "flip a byte of the answer"
#: A slow link: 2 MiB/s. The drips are drawn by no schedule, because they are no fault; a test asks for them.
DRIP_BYTES, DRIP_S = 128 * 2**10, 0.06
_ERROR = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>a test asked for it</Message></Error>'
_STATUS = {"500": (500, "InternalError"), "503": (503, "ServiceUnavailable"), "SlowDown": (503, "SlowDown")}
#: How a test asks for a refusal of its own, with status and code.
REFUSE = "refuse {} {}"
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass
class Schedule:
    """Draws the fault of each request. One lock: the draws, not the requests, are in order."""

    seed: int
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    is_off: bool = False
    #: Until when, by `time.monotonic`, whoever asks is hung up on.
    away_until_s: float = 0.0
    #: Whether ETags are told that are no MD5s, as by a bucket with SSE-KMS.
    hides_md5: bool = False

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()

    def draw(self, method: str, path: str) -> tuple[str, float]:
        """The fault of the next request ("" for none), and a number in [0, 1) for where it strikes."""
        with self._lock:
            names, odds = [*ODDS, ""], [*ODDS.values(), 1.0 - sum(ODDS.values())]
            fault = self._random.choices(names, odds)[0]
            where = self._random.random()
            if self.is_off or (fault == "lie" and method not in ("PUT", "POST", "DELETE")):
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
            if time.monotonic() < schedule.away_until_s:
                self.hang_up()
                return
            self.fault, self.where = schedule.draw(self.command, self.path)
            if self.fault == "go away":
                schedule.away_until_s = time.monotonic() + AWAY_S
                self.hang_up()
                return
            if self.headers.get("Expect", "").lower() == "100-continue":
                self.send_response_only(100)
                self.end_headers()
            length = int(self.headers.get("Content-Length") or 0)
            if self.fault == "cut the request":
                self.rfile.read(int(length * self.where))
                self.hang_up()
                return
            body = self.drip(length) if self.fault == "drip" else self.rfile.read(length)
            if self.fault == FLIP_REQUEST:
                body = flipped(body, self.where)
            if self.fault == "delay":
                time.sleep(DELAY_S)
            if self.fault in _STATUS:
                self.refuse(*_STATUS[self.fault])
            elif self.fault.startswith("refuse "):
                _, status, code = self.fault.split()
                self.refuse(int(status), code)
            elif self.fault == "lie":
                self.answer(200, {"ETag": '"0"'}, b"")
            else:
                self.forward(body)

        def drip(self, length: int) -> bytes:
            """Take what is sent as a slow link would."""
            pieces = []
            while left := length - sum(map(len, pieces)):
                pieces.append(self.rfile.read(min(left, DRIP_BYTES)))
                time.sleep(DRIP_S)
            return b"".join(pieces)

        def forward(self, body: bytes) -> None:
            connection = HTTPConnection(upstream, timeout=30)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in {*_HOP, "expect"}}
            if schedule.hides_md5 and self.command == "POST":
                body = without_md5(body.decode()).encode()
            connection.request(self.command, self.path, body=body or None, headers=headers)
            found = connection.getresponse()
            content = found.read()
            connection.close()
            if self.fault == FLIP_ANSWER:
                content = flipped(content, self.where)
            if self.fault == "lose the answer":
                self.hang_up()
                return
            length = found.getheader("Content-Length")
            given = {name: value for name, value in found.getheaders() if name.lower() not in {*_HOP, "server", "date"}}
            if schedule.hides_md5:
                given = {name: without_md5(value) if name.lower() == "etag" else value for name, value in given.items()}
                content = without_md5(content.decode()).encode() if self.command == "POST" else content
            self.answer(found.status, given, content, length=length)

        def refuse(self, status: int, code: str) -> None:
            self.answer(status, {}, _ERROR.format(code=code).encode())

        def answer(self, status: int, headers: dict[str, str], content: bytes, *, length: str | None = None) -> None:
            self.send_response(status)
            # First: the last header may be cut inside its value, and a length without its last digit is a length.
            self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(content)))
            for name, value in headers.items():
                self.send_header(name, value)
            if self.fault in ("cut the headers", "cut the status line"):
                self.cut_headers()
                return
            self.end_headers()
            shown = content[: int(len(content) * self.where)] if self.fault == "cut the answer" else content
            if self.command != "HEAD":
                self.wfile.write(shown)
            if len(shown) < len(content):
                self.hang_up()

        def cut_headers(self) -> None:
            """From the first byte on: inside the status line, or somewhere behind it."""
            status, *headers = self._headers_buffer
            rest = b"".join(headers)
            if self.fault == "cut the status line":
                self._headers_buffer = [status[: int(len(status) * self.where)]]
            else:
                self._headers_buffer = [status, rest[: int(len(rest) * self.where)]]
            self.flush_headers()
            self.hang_up()

        def hang_up(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(2)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = serve

        def log_message(self, *_arguments: object) -> None:
            """Quiet: `Schedule.faults` says what happened."""

    return Handler


def flipped(content: bytes, where: float) -> bytes:
    """With one bit of one byte the other way round."""
    at = int(len(content) * where)
    return content[:at] + bytes(byte ^ 0x10 for byte in content[at : at + 1]) + content[at + 1 :]


def without_md5(text: str) -> str:
    """With every MD5 written backwards; done again, with the MD5s themselves."""
    return re.sub(r"\b[0-9a-f]{32}\b", lambda found: found[0][::-1], text)
