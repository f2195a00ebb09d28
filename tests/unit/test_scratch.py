"""Scratch folders: one an attempt, and never that of another root, or of another life of the same root."""

from pathlib import Path

import pytest

from prunella.scratch import attempt_scratch, run_scratch, write_atomically


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path))
    return tmp_path


def test_an_attempt_finds_its_folder_again_with_what_is_in_it() -> None:
    (attempt_scratch("/root-a", "demo", 0, 1, opened_ns=5) / "rank.json").write_text("{}")

    assert (attempt_scratch("/root-a", "demo", 0, 1, opened_ns=5) / "rank.json").exists()


@pytest.mark.parametrize(
    "other",
    [
        ("/root-b", "demo", 0, 1, 5),
        ("/root-a", "other", 0, 1, 5),
        ("/root-a", "demo", 1, 1, 5),
        ("/root-a", "demo", 0, 2, 5),
        ("/root-a", "demo", 0, 1, 6),  # the root was deleted and used again: a later attempt of the same number
    ],
)
def test_two_attempts_never_share_a_folder(other: tuple[str, str, int, int, int]) -> None:
    root, experiment, segment, attempt, opened_ns = other

    folder = attempt_scratch(root, experiment, segment, attempt, opened_ns=opened_ns)

    assert folder != attempt_scratch("/root-a", "demo", 0, 1, opened_ns=5)


def test_a_run_has_a_folder_beside_those_of_its_attempts() -> None:
    of_run = run_scratch("/root-a", "demo", 0, 0, opened_ns=5)

    assert of_run.is_dir()
    assert of_run != attempt_scratch("/root-a", "demo", 0, 0, opened_ns=5)


def test_folders_are_for_their_owner_alone(base: Path) -> None:
    assert attempt_scratch("/root-a", "demo", 0, 0, opened_ns=5).stat().st_mode & 0o077 == 0


def test_a_reader_sees_the_old_or_the_new_text(base: Path) -> None:
    write_atomically(base / "beat.json", "old")
    write_atomically(base / "beat.json", "new")

    assert (base / "beat.json").read_text() == "new"
    assert list(base.iterdir()) == [base / "beat.json"]


def test_a_write_that_fails_leaves_nothing(base: Path) -> None:
    (base / "beat.json").mkdir()

    with pytest.raises(IsADirectoryError):
        write_atomically(base / "beat.json", "new")

    assert list(base.iterdir()) == [base / "beat.json"]
