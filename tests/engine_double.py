"""A stand-in for a container engine: Docker's API on a socket, with the answers of a plan, noting what it is asked.

For what a real engine cannot be brought to here: to run without root, or to lose a container at the wrong moment.
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

#: What the versions of podman's and Docker's engine say of themselves.
PODMAN = {"ApiVersion": "1.41", "Components": [{"Name": "Podman Engine"}, {"Name": "Conmon"}]}
DOCKER = {"ApiVersion": "1.41", "Components": [{"Name": "Engine"}, {"Name": "containerd"}]}
#: What either says of itself when it runs without root.
ROOTLESS = {"SecurityOptions": ["name=seccomp,profile=default", "name=rootless"]}
_USUAL = {"GET /version": PODMAN, "GET /info": {"SecurityOptions": ["name=seccomp,profile=default"]}}


class EngineDouble(ThreadingMixIn, UnixStreamServer):
    """Answers `METHOD /path` (without the API's version) with a document or bytes, or refuses it with a status, and all else
    with 404."""

    daemon_threads = True

    def __init__(self, path: Path, plan: Mapping[str, Any]) -> None:
        super().__init__(str(path), _Door)
        path.chmod(0o660)  # as systemd's and Docker's are
        self.path = path
        self.plan = {**_USUAL, **plan}
        self.asked: list[tuple[str, dict[str, list[str]]]] = []
        self.sent: list[tuple[str, Any]] = []

    @property
    def address(self) -> str:
        return f"unix://{self.path}"

    def queries(self, what: str) -> list[dict[str, list[str]]]:
        """With which query it was asked this, each time."""
        return [query for asked, query in self.asked if asked == what]

    def documents(self, what: str) -> list[Any]:
        """What it was sent with this, each time; None where nothing was."""
        return [document for asked, document in self.sent if asked == what]


class _Door(BaseHTTPRequestHandler):
    server: EngineDouble

    def _answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        target = urlsplit(self.path)
        path = re.sub(r"^/v[0-9.]+", "", target.path)
        self.server.asked.append((f"{self.command} {path}", parse_qs(target.query)))
        self.server.sent.append((f"{self.command} {path}", json.loads(sent) if sent else None))
        found = self.server.plan.get(f"{self.command} {path}", 404)
        is_refusal = isinstance(found, int)
        document = {"message": f"no such thing: {path}"} if is_refusal else found
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(found if is_refusal else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def engine_double(path: Path, plan: Mapping[str, Any] = _USUAL) -> Iterator[EngineDouble]:
    """An engine that listens at `path` while the block runs."""
    server = EngineDouble(path, plan)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
