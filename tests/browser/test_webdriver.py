"""The door through which tests look at pages works by itself, before it is blamed on a page."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from browser.webdriver import BrowserError, open_browser

_PAGE = """<!doctype html><title>t</title><input id=name><button id=greet
onclick="document.querySelector('p').innerText = 'hello ' + document.querySelector('#name').value">greet</button><p></p>"""


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def page_url(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "index.html").write_text(_PAGE)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("browser_programs")
def test_a_page_is_read_filled_clicked_and_photographed(page_url: str, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"

    with open_browser(width=400, height=300) as browser:
        browser.open(page_url)
        browser.fill("#name", "world")
        browser.click("#greet")
        browser.wait_for_text("hello world")
        browser.photograph(picture)
        with pytest.raises(BrowserError, match=r"nothing matched '#absent' within 0\.1 s; the page says: .*hello world"):
            browser.wait_for("#absent", timeout_s=0.1)

    assert picture.read_bytes().startswith(b"\x89PNG")
