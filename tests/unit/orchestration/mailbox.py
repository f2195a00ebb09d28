"""A real webhook for tests, on loopback."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Mailbox:
    """An HTTP server that keeps what was posted to it."""

    def __init__(self, status: int = 200) -> None:
        letters: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                letters.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                """Quiet."""

        self.letters = letters
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/hook-secret"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
