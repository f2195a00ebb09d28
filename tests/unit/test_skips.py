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

def test_that_needs_a_gpu():
    pytest.skip("no NVIDIA GPU here")
"""


@pytest.mark.parametrize(
    ("options", "closing_line"),
    [([], "2 skipped"), (["--no-missing-system"], "1 failed, 1 skipped")],
    ids=["lenient", "strict"],
)
def test_a_skip_for_want_of_make_system_fails_only_when_asked(tmp_path: Path, options: list[str], closing_line: str) -> None:
    shutil.copy(_CONFTEST, tmp_path)
    (tmp_path / "test_sample.py").write_text(_TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), *options]

    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert closing_line in answer.stdout.splitlines()[-1]
