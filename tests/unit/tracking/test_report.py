"""report.html is one page that needs nothing and trusts nobody."""

import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from prunella.tracking.history import read_history
from prunella.tracking.incidents import stories
from prunella.tracking.plots import expert_load, loss_curve
from prunella.tracking.report import page, shortened, write_report
from unit.tracking.campaign import MS, open_campaign, play

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Tags(HTMLParser):
    """Collects elements and checks that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    campaign = play(str(folder / "root"))
    write_report(campaign.ledger, folder / "out" / "report.html", now_ns=0)
    return (folder / "out" / "report.html").read_text()


def test_the_page_is_well_formed_and_loads_nothing(html: str) -> None:
    tags = Tags()

    tags.feed(html)

    names = {tag for tag, _ in tags.seen}
    references = [value or "" for _, attrs in tags.seen for key, value in attrs.items() if key in ("src", "href", "xlink:href")]
    assert tags.open == []
    assert names.isdisjoint({"script", "link", "iframe", "img"})
    assert [reference for reference in references if not reference.startswith(("#", "data:"))] == []
    assert "@import" not in html


def test_what_records_say_is_escaped(html: str) -> None:
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "&lt;i&gt;process_crash&lt;/i&gt; seen" in html


@pytest.mark.parametrize(
    "expected",
    [
        "Loss by optimizer step",
        "superseded steps",
        "Expert load by layer and step",
        "matrix_product on node-1: 9000 ulp, expected at most 64",
        "heldout_choice",
        "0.460 to 0.640",
        "Timeline of the experiment",
        "lost progress",
        "roll_back",
        "def &lt;script&gt;",
        "moe__seg-0001__r0",
        "digest of one file differs",
    ],
)
def test_the_page_shows(html: str, expected: str) -> None:
    assert expected in html


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rank 1 on node-1 is gone", "rank 1 on node-1 is gone"),
        (f"expected sha256 {'ab12' * 16}, found none", "expected sha256 ab12ab12..., found none"),
        ("experiments/demo/checkpoints/0002-00-0003/shard-1.safetensors is damaged", "shard-1.safetensors is damaged"),
        ("word " * 100, "word " * 71 + "word ..."),
    ],
    ids=["short", "digest", "key", "long"],
)
def test_long_evidence_is_shortened_to_be_read(text: str, expected: str) -> None:
    assert shortened(text) == expected


def test_an_incident_has_its_facts_in_one_row_and_what_was_seen_across_the_next(html: str) -> None:
    tags = Tags()

    tags.feed(html.partition("<h2>Incidents</h2>")[2].partition("</section>")[0])

    rows = sum(tag == "tr" for tag, _ in tags.seen)
    wide = [attrs for tag, attrs in tags.seen if tag == "td" and attrs.get("colspan")]
    assert rows == 1 + 2 * len(wide)
    assert len(wide) >= 3
    assert "recovery by phase: detect" in html


def test_a_report_of_the_same_ledger_is_the_same_page(tmp_path: Path) -> None:
    campaign = play(str(tmp_path))

    pages = [page(read_history(campaign.ledger), now_ns=now_ns) for now_ns in (1, 2)]

    assert pages[0] == pages[1]


def test_an_experiment_without_a_step_has_a_page(tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path))

    html = page(read_history(campaign.ledger), now_ns=campaign.now_ns + MS)

    assert "Nothing to show yet." in html


def test_pictures_are_svg_that_scales_with_the_page(tmp_path: Path) -> None:
    history = read_history(play(str(tmp_path)).ledger)

    for picture in (loss_curve(history, stories(history)), expert_load(history)):
        assert picture is not None
        root = ElementTree.fromstring(picture)
        assert "viewBox" in root.attrib
        assert "width" not in root.attrib
