"""The README's map has one line for every file, and none for a file that is gone."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MAPPED = ("components", "dags", "containers", "mlflow", "requirements", "tests")
_FUNCTION = re.compile(r"^def (test_\w+)\(", re.MULTILINE)
_NAMED_TEST = re.compile(r"`(test_\w+)`")
README = (REPOSITORY / "README.md").read_text()


def lines_of_the_map() -> Iterator[tuple[str, str]]:
    """(path, what it is) of each line; a line without indentation names the folder of those below it."""
    folder = ""
    for line in README.partition("## Map")[2].partition("```text\n")[2].partition("\n```")[0].splitlines():
        if not line.startswith(" "):
            folder = line.removeprefix("./")
            continue
        name, _, meaning = line.strip().partition(" ")
        yield f"{folder}{name}", meaning.strip()


def files_with_content(folder: str) -> Iterator[str]:
    """Files under a folder, but for caches and the empty ones that only mark packages."""
    for path in sorted((REPOSITORY / folder).rglob("*")):
        name = path.relative_to(REPOSITORY).as_posix()
        is_cache = any(part == "__pycache__" or part.startswith(".") for part in name.split("/"))
        if path.is_file() and path.stat().st_size and not is_cache:
            yield name


@pytest.mark.parametrize("folder", MAPPED)
def test_every_file_has_its_line(folder: str) -> None:
    mapped = [path for path, _ in lines_of_the_map()]

    missing = [path for path in files_with_content(folder) if path not in mapped]

    assert missing == [], "give each a line in the README's map"


def test_no_line_names_a_file_that_is_not_there() -> None:
    gone = [path for path, _ in lines_of_the_map() if not (REPOSITORY / path).is_file()]

    assert gone == [], "remove their lines from the README's map"


def test_a_file_has_one_line_and_the_line_says_what_it_is() -> None:
    lines = list(lines_of_the_map())

    paths = [path for path, _ in lines]
    assert [path for path in paths if paths.count(path) > 1] == []
    assert [path for path, meaning in lines if not meaning] == []


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "dags/README.md",
        "tests/README.md",
        "containers/README.md",
        "containers/kubernetes/README.md",
        "mlflow/README.md",
    ],
)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    path = REPOSITORY / page
    targets = re.findall(r"\]\((?!https?://)([^)#]+)[^)]*\)", path.read_text())

    dead = [target for target in targets if not (path.parent / target).exists()]

    assert dead == []


def test_every_test_named_in_the_list_of_promises_exists() -> None:
    page = (REPOSITORY / "tests" / "README.md").read_text()
    named = re.findall(r"`(test_\w+)`", page)
    source = "\n".join(path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py"))

    lost = [name for name in named if f"def {name}(" not in source]

    assert named
    assert lost == []


def test_every_promise_names_a_test_that_is_there() -> None:
    written = {name for path in (REPOSITORY / "tests").rglob("test_*.py") for name in _FUNCTION.findall(path.read_text())}

    named = set(_NAMED_TEST.findall(README))

    assert named
    assert named <= written
