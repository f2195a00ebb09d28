"""`make test-full` may not lose tests in silence."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_CONFTEST = Path(__file__).resolve().parent.parent / "conftest.py"
_TESTS = """
import pytest

def test_that_needs_a_browser():
    pytest.skip("make system: chromium is not installed")

def test_that_needs_an_image():
    pytest.skip("make images: prunella/worker:0.1.0 not built yet")

@pytest.mark.skipif(True, reason="make orchestrator: Airflow's own environment is not there")
def test_that_needs_airflows_environment():
    pass

def test_that_needs_a_gpu():
    pytest.skip("no NVIDIA GPU here")
"""

#: A whole file that needs it: it is skipped before it is collected.
_FILE = """
import pytest

pytest.skip("make images: not built yet", allow_module_level=True)
"""


@pytest.mark.parametrize(
    ("options", "closing_line"),
    [([], "4 skipped"), (["--nothing-missing"], "2 failed, 1 skipped, 1 error")],
    ids=["lenient", "strict"],
)
def test_a_skip_for_want_of_a_make_target_fails_only_when_asked(tmp_path: Path, options: list[str], closing_line: str) -> None:
    answer = pytest_says(tmp_path, _TESTS, options)

    assert closing_line in answer.stdout.splitlines()[-1]


@pytest.mark.parametrize(("options", "code"), [([], 5), (["--nothing-missing"], 2)], ids=["lenient", "strict"])
def test_a_file_skipped_for_want_of_a_make_target_fails_only_when_asked(tmp_path: Path, options: list[str], code: int) -> None:
    answer = pytest_says(tmp_path, _FILE, options)

    assert answer.returncode == code, answer.stdout
    assert ("run `make images` first" in answer.stdout) == bool(options)


def test_the_command_of_make_test_full_asks_for_it() -> None:
    recipe = (_CONFTEST.parent.parent / "Makefile").read_text().partition("\ntest-full:")[2].partition("\n.PHONY")[0]

    assert " --nothing-missing " in recipe


def pytest_says(folder: Path, tests: str, options: list[str]) -> subprocess.CompletedProcess[str]:
    """A run of these tests beside our own conftest.py."""
    shutil.copy(_CONFTEST, folder)
    (folder / "test_sample.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
