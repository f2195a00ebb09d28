"""A real browser for tests and for the pictures in the README: headless Chromium, driven over WebDriver.

The protocol is a few HTTP calls (W3C WebDriver), spoken here with the standard library, so that no package is needed beside
Debian's `chromium` and `chromium-driver` (`make system`). The browser asks nothing of the network but the page it is given.
As a command it photographs one page: `.venv/bin/python tests/browser/webdriver.py URL PICTURE.png [CSS-TO-WAIT-FOR]`.
"""

import base64
import contextlib
import json
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunella.node_processes import free_port, kill_groups, start_on_node
from prunella.records import NodeRef

#: Key under which WebDriver hands out elements (W3C WebDriver, section 12).
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_CHROMIUM_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
#: A busy page answers late. Source: own measurement 2026-11: Airflow's graph took 80 s on 2 cores shared by nine jobs.
_ANSWER_TIMEOUT_S = 240.0
#: Keys sent in one go. Airflow's form loses the 52nd of a burst that no person could type (own measurement 2026-11).
_KEYS_AT_ONCE = 20
#: Control and A, then all keys up (WebDriver, section 17.4.2). WebDriver's own `clear` leaves scripted inputs as they were.
_SELECT_ALL = "\ue009a\ue000"


class BrowserError(Exception):
    """The browser refused a command, or a page never showed what was waited for."""


class Browser:
    """One window. Elements are named by CSS selectors; every action waits for its element first."""

    def __init__(self, address: str, session: str) -> None:
        self._base = f"{address}/session/{session}"

    def open(self, url: str) -> None:
        """Load a page and wait for its `load` event."""
        _call("POST", f"{self._base}/url", {"url": url})

    def wait_for(self, css: str, *, timeout_s: float = 30.0) -> str:
        """The first element that matches, as soon as there is one. Raises BrowserError after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = _call("POST", f"{self._base}/elements", {"using": "css selector", "value": css})
            if found:
                return str(found[0][_ELEMENT])
            time.sleep(0.1)
        raise BrowserError(
            f"{self.url()}: nothing matched {css!r} within {timeout_s:g} s; the page says: {self.text()[:400]!r}"
        )

    def wait_for_text(self, text: str, *, timeout_s: float = 30.0) -> None:
        """Return once the page shows `text`. Raises BrowserError after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while text not in (seen := self.text()):
            if time.monotonic() > deadline:
                raise BrowserError(f"{self.url()}: no {text!r} within {timeout_s:g} s; the page says: {seen[:400]!r}")
            time.sleep(0.1)

    def click(self, css: str) -> None:
        _call("POST", f"{self._base}/element/{self.wait_for(css)}/click", {})

    def fill(self, css: str, text: str) -> None:
        """Replace the content of an input, as a person does: select it all and type over it."""
        element = self.wait_for(css)
        _call("POST", f"{self._base}/element/{element}/value", {"text": _SELECT_ALL})
        for start in range(0, len(text), _KEYS_AT_ONCE):
            keys = text[start : start + _KEYS_AT_ONCE]
            _call("POST", f"{self._base}/element/{element}/value", {"text": keys})

    def script(self, source: str, *arguments: object) -> Any:
        """Run JavaScript in the page; `return` gives its answer."""
        return _call("POST", f"{self._base}/execute/sync", {"script": source, "args": list(arguments)})

    def url(self) -> str:
        return str(_call("GET", f"{self._base}/url"))

    def text(self) -> str:
        """What a person can read on the page."""
        return str(self.script("return document.body ? document.body.innerText : ''"))

    def photograph(self, path: Path) -> None:
        """Write the window's content as PNG."""
        path.write_bytes(base64.b64decode(_call("GET", f"{self._base}/screenshot")))


@contextlib.contextmanager
def open_browser(*, width: int = 1440, height: int = 900) -> Iterator[Browser]:
    """A fresh browser without history; it and its driver end with the block.

    Raises:
        BrowserError: Chromium or its driver is not installed, or does not start.
    """
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise BrowserError("expected the programs chromium and chromedriver, found none; run: make system")
    with tempfile.TemporaryDirectory(prefix="prunella-browser-", ignore_cleanup_errors=True) as folder:
        address = f"http://127.0.0.1:{(port := free_port())}"
        process = start_on_node(NodeRef(name="browser"), [driver, f"--port={port}"], log=Path(folder) / "driver.log")
        options = [*_CHROMIUM_OPTIONS, f"--user-data-dir={folder}/profile", f"--window-size={width},{height}"]
        try:
            _wait_until_ready(address)
            chrome = {"binary": chromium, "args": options}
            wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": chrome}}}
            session = _call("POST", f"{address}/session", wanted)["sessionId"]
            yield Browser(address, session)
            _call("DELETE", f"{address}/session/{session}")
        finally:
            kill_groups([process])


def _wait_until_ready(address: str, *, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if _call("GET", f"{address}/status")["ready"]:
                return
        except urllib.error.URLError as error:
            if time.monotonic() > deadline:
                raise BrowserError(f"chromedriver at {address} did not start within {timeout_s:g} s: {error}") from error
        time.sleep(0.05)


def _call(method: str, url: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_ANSWER_TIMEOUT_S) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise BrowserError(f"{method} {url}: {json.load(error)['value']['message']}") from error


def main(url: str, picture: str, css: str = "body") -> None:
    with open_browser() as browser:
        browser.open(url)
        browser.wait_for(css)
        browser.photograph(Path(picture))


if __name__ == "__main__":
    main(*sys.argv[1:])
