"""Scratch folders: one an attempt, never that of another root or of another life of the same root, and nobody else's."""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunella.errors import ConfigError
from prunella.scratch import attempt_scratch, make_folder, run_scratch, scratch_base, write_atomically


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


@pytest.fixture
def usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The base that nobody chose, under a temporary folder that anybody may write to; not made yet."""
    monkeypatch.delenv("PRUNELLA_SCRATCH")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tmp_path.chmod(0o1777)
    return tmp_path / f"prunella-{os.getuid()}"


@pytest.fixture
def lavish_umask() -> Iterator[None]:
    """One that leaves everybody every right."""
    before = os.umask(0)
    yield
    os.umask(before)


def _mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


@pytest.mark.usefixtures("lavish_umask")
def test_the_usual_base_is_made_for_its_owner_alone_and_found_again(usual: Path) -> None:
    made = attempt_scratch("/root-a", "demo", 0, 0, opened_ns=5)

    assert usual in made.parents
    assert _mode(usual) == 0o700
    assert attempt_scratch("/root-a", "demo", 0, 0, opened_ns=5) == made


@pytest.mark.usefixtures("lavish_umask")
def test_a_chosen_base_is_made_for_its_owner_alone_with_all_above_it(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(base / "above" / "scratch"))

    folder = make_folder(scratch_base() / "objects" / "a")

    above = [base / "above", *(parent for parent in folder.parents if base / "above" in parent.parents), folder]
    assert [_mode(each) for each in above] == [0o700] * 4


def _refused(found: str) -> str:
    return f"expected a folder that only user {os.getuid()} may write to, found {found}.*remove it, or set PRUNELLA_SCRATCH to"


def test_a_link_in_place_of_the_usual_base_is_refused(usual: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    usual.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(ConfigError, match=_refused(f"a link to {tmp_path / 'elsewhere'}")):
        attempt_scratch("/root-a", "demo", 0, 0, opened_ns=5)

    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_link_to_nowhere_in_place_of_the_usual_base_is_refused_and_made_nothing_of(usual: Path, tmp_path: Path) -> None:
    usual.symlink_to(tmp_path / "nowhere")

    with pytest.raises(ConfigError, match=r"expected a folder for scratch.*set PRUNELLA_SCRATCH to"):
        attempt_scratch("/root-a", "demo", 0, 0, opened_ns=5)

    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_usual_base_that_others_may_write_to_is_refused(usual: Path, mode: int) -> None:
    usual.mkdir()
    usual.chmod(mode)

    with pytest.raises(ConfigError, match=_refused("one that others may write to")):
        attempt_scratch("/root-a", "demo", 0, 0, opened_ns=5)

    assert list(usual.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a folder to somebody else")
def test_a_usual_base_of_somebody_else_is_refused(usual: Path) -> None:
    usual.mkdir(mode=0o700)
    os.chown(usual, 4242, 4242)

    with pytest.raises(ConfigError, match=_refused("one of user 4242")):
        attempt_scratch("/root-a", "demo", 0, 0, opened_ns=5)

    assert list(usual.iterdir()) == []


def test_a_usual_base_that_others_may_only_read_is_used(usual: Path) -> None:
    usual.mkdir()
    usual.chmod(0o755)

    assert attempt_scratch("/root-a", "demo", 0, 0, opened_ns=5).is_dir()


def test_a_chosen_base_may_be_a_volume_that_is_open_to_all(base: Path) -> None:
    """As Kubernetes mounts an emptyDir: of root, for everybody, and with the group of the pod."""
    base.chmod(0o2777)
    if os.getuid() == 0:
        os.chown(base, 4242, 4242)

    assert attempt_scratch("/root-a", "demo", 0, 0, opened_ns=5).is_dir()


def test_a_chosen_base_may_be_a_link(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (base / "fast-disk").mkdir()
    (base / "scratch").symlink_to(base / "fast-disk")
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(base / "scratch"))

    attempt_scratch("/root-a", "demo", 0, 0, opened_ns=5)

    assert len(list((base / "fast-disk").iterdir())) == 1


def test_a_chosen_base_that_is_a_file_is_one_clear_error(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (base / "file").write_text("not a folder")
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(base / "file"))

    with pytest.raises(ConfigError, match=r"file: expected a folder for scratch.*File exists.*set PRUNELLA_SCRATCH to"):
        attempt_scratch("/root-a", "demo", 0, 0, opened_ns=5)


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
