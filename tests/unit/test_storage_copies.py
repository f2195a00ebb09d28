"""Local copies of a bucket's objects: fetched once, within the limit, and nobody who reads one loses it."""

import errno
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buckets import big_file
from prunella.errors import Cause, ConfigError, StorageFull, StorageUnavailable
from prunella.storage import Content, S3Store, with_local_file
from prunella.storage.cache import ObjectCache
from prunella.training_segment.failures import classify
from small_disk import small_disk
from waiting import wait_until

MIB = 2**20


@pytest.fixture
def store(bucket_store: S3Store) -> S3Store:
    """The store in a bucket."""
    return bucket_store


def test_an_object_is_fetched_once(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put_new("a/b", b"content")
    first = store.local_path("a/b")
    monkeypatch.setattr(store, "_fetch", lambda *_: pytest.fail("fetched again"))

    assert store.local_path("a/b") == first


def test_an_object_that_was_replaced_is_fetched_again(store: S3Store) -> None:
    store.put_new("a/b", b"old")
    store.local_path("a/b")

    store.delete("a/b")
    store.put_new("a/b", b"new")

    assert store.local_path("a/b").read_bytes() == b"new"


def test_the_longest_unused_copies_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path))
    cache = ObjectCache("s3://bucket", limit_bytes=250)
    copies = {name: cache.file(name, "v1", lambda path: path.write_bytes(bytes(100)) and None) for name in ("a", "b")}
    os.utime(copies["a"], ns=(1, 1))
    os.utime(copies["b"], ns=(2, 2))

    cache.file("a", "v1", lambda path: pytest.fail("it is there"))
    cache.file("c", "v1", lambda path: path.write_bytes(bytes(100)) and None)

    assert [copies["a"].exists(), copies["b"].exists()] == [True, False]


def test_the_limit_holds_however_recently_copies_were_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path))
    cache = ObjectCache("s3://bucket", limit_bytes=250)

    copies = []
    for age, name in enumerate("abcd"):
        copies.append(cache.file(name, "v1", lambda path: path.write_bytes(bytes(100)) and None))
        os.utime(copies[-1], (time.time() - 10 + age,) * 2)

    assert [path.exists() for path in copies] == [False, False, True, True]


def test_the_copy_that_was_asked_for_stays_whatever_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path))
    cache = ObjectCache("s3://bucket", limit_bytes=50)

    copies = [cache.file(name, "v1", lambda path: path.write_bytes(bytes(100)) and None) for name in "ab"]

    assert [path.exists() for path in copies] == [False, True]


def test_what_is_being_fetched_makes_no_room_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path))
    cache = ObjectCache("s3://bucket", limit_bytes=50)

    def fetch_while_another_is_fetched(path: Path) -> None:
        path.write_bytes(bytes(100))
        cache.file("b", "v1", lambda path: path.write_bytes(bytes(100)) and None)

    assert cache.file("a", "v1", fetch_while_another_is_fetched).exists()


@pytest.mark.parametrize("left", [".leftover", ".a.lock"])
def test_what_a_killed_process_was_fetching_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path))
    cache = ObjectCache("s3://bucket", limit_bytes=250)
    first = cache.file("a", "v1", lambda path: path.write_bytes(bytes(100)) and None)
    leftover = first.with_name(left)
    leftover.write_bytes(bytes(100))
    os.utime(leftover, (1, 1))

    cache.file("b", "v1", lambda path: path.write_bytes(bytes(100)) and None)

    assert [leftover.exists(), first.exists()] == [False, True]


#: Asks for one copy. Its fetch tells that it began, and does not end before a file says how.
_ASKS = """
import sys, time
from pathlib import Path
from prunella.errors import StorageUnavailable
from prunella.storage.cache import ObjectCache

name, folder = sys.argv[1], Path(sys.argv[2])

def fetch(path):
    (folder / f"{name}.began").touch()
    while not (folder / "goes-well").exists() and not (folder / "fails").exists():
        time.sleep(0.01)
    if (folder / "fails").exists():
        raise StorageUnavailable("out of reach")
    path.write_text(name)

cache = ObjectCache("s3://bucket", limit_bytes=250)
(folder / f"{name}.asks").touch()
try:
    print(cache.file("a", "v1", fetch).read_text())
except StorageUnavailable as error:
    print(error)
"""


@pytest.fixture
def asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts processes of a machine, by name, that all want one copy; returns once they ask for it."""
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path / "scratch"))
    started = []

    def start(name: str) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", _ASKS, name, str(tmp_path)]
        started.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True))
        wait_until((tmp_path / f"{name}.asks").exists, timeout_s=60)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def _files(scratch: Path) -> list[str]:
    return [path.name for path in scratch.rglob("*") if path.is_file()]


def _one_fetches_and_the_rest_wait(
    asking: Callable[[str], "subprocess.Popen[str]"], folder: Path, first: str, *others: str
) -> "list[subprocess.Popen[str]]":
    """Processes that want the same copy: the first is fetching it, and the others are known to wait for that."""
    fetching = asking(first)
    wait_until((folder / f"{first}.began").exists)
    waiting = [asking(name) for name in others]
    wait_until(lambda: all(map(_is_waiting_for_a_lock, waiting)))
    return [fetching, *waiting]


def _is_waiting_for_a_lock(process: "subprocess.Popen[str]") -> bool:
    """Whether the kernel has it stand in line, the lines of whose waiters have an arrow."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f" {process.pid} " in line for line in lines)


def test_processes_that_want_a_copy_at_once_fetch_it_once(
    asking: Callable[[str], "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    asked = _one_fetches_and_the_rest_wait(asking, tmp_path, "first", "second", "third")

    (tmp_path / "goes-well").touch()

    assert [process.communicate(timeout=60)[0] for process in asked] == ["first\n"] * 3
    assert not (tmp_path / "second.began").exists()
    assert not (tmp_path / "third.began").exists()
    assert _files(tmp_path / "scratch") == ["a"]


def test_a_process_that_is_killed_while_it_fetches_keeps_nobody_from_it(
    asking: Callable[[str], "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    first, second = _one_fetches_and_the_rest_wait(asking, tmp_path, "first", "second")

    first.kill()
    wait_until((tmp_path / "second.began").exists, timeout_s=60)
    (tmp_path / "goes-well").touch()

    assert second.communicate(timeout=60)[0] == "second\n"
    assert _files(tmp_path / "scratch") == ["a"]


def test_whoever_waited_for_a_fetch_that_failed_shares_the_failure_and_fetches_the_next_time(
    asking: Callable[[str], "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    first, second = _one_fetches_and_the_rest_wait(asking, tmp_path, "first", "second")

    (tmp_path / "fails").touch()
    said = [process.communicate(timeout=60)[0] for process in (first, second)]
    (tmp_path / "fails").unlink()
    (tmp_path / "goes-well").touch()

    assert said[0] == "out of reach\n"
    assert "expected the copy that another process was fetching, found that its fetch failed" in said[1]
    assert not (tmp_path / "second.began").exists()
    assert _files(tmp_path / "scratch") == []
    assert asking("third").communicate(timeout=60)[0] == "third\n"


def test_a_copy_that_is_dropped_before_it_was_opened_is_fetched_again(store: S3Store) -> None:
    store.put_new("a/b", b"content")
    looks: list[Path] = []

    def open_late(path: Path) -> bytes:
        looks.append(path)
        if len(looks) == 1:
            path.unlink()  # as another process does that needs room
        return path.read_bytes()

    assert with_local_file(store, "a/b", open_late) == b"content"
    assert len(looks) == 2


def test_copies_that_are_dropped_faster_than_they_are_opened_ask_for_room(store: S3Store) -> None:
    store.put_new("a/b", b"content")

    def open_too_late(path: Path) -> bytes:
        path.unlink()
        return path.read_bytes()

    with pytest.raises(StorageUnavailable, match=r"found it dropped 3 times in a row; raise PRUNELLA_CACHE_BYTES"):
        with_local_file(store, "a/b", open_too_late)


def test_a_placed_file_outlives_its_copy_and_tells_what_was_fetched_for_it(store: S3Store, tmp_path: Path) -> None:
    store.put_new("a/b", b"content")

    told = [store.place("a/b", tmp_path / name) for name in ("one", "two")]
    store.drop_copy("a/b")

    assert told == [Content(size_bytes=7, sha256=hashlib.sha256(b"content").hexdigest()), None]
    assert [(tmp_path / name).read_bytes() for name in ("one", "two")] == [b"content"] * 2


def test_a_copy_that_was_cut_short_does_not_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path))
    cache = ObjectCache("s3://bucket", limit_bytes=250)

    def cut(path: Path) -> None:
        path.write_bytes(b"half")
        raise StorageUnavailable("cut")

    with pytest.raises(StorageUnavailable):
        cache.file("a", "v1", cut)

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("size_bytes", [10, 9 * MIB], ids=["one part", "several parts"])
def test_a_file_that_was_put_is_kept_as_the_copy_where_asked(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    path = big_file(tmp_path, size_bytes)
    monkeypatch.setattr(store, "_fetch", lambda *_: pytest.fail("fetched"))

    store.put_new_file("a/b", path, keep_copy=True)

    assert store.local_path("a/b").samefile(path)


def test_a_file_that_was_put_is_copied_to_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_paths: Path) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(os, "link", link)
    (tmp_path / "file").write_bytes(b"content")
    cache = ObjectCache("s3://bucket", limit_bytes=250)

    cache.adopt("a", "v1", tmp_path / "file")

    assert cache.file("a", "v1", lambda _: pytest.fail("it is there")).read_bytes() == b"content"


def test_a_copy_that_cannot_be_kept_fails_no_put(store: S3Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "scratch").write_text("a file where a folder should be")
    path = big_file(tmp_path, 10)

    store.put_new_file("a/b", path, keep_copy=True)

    assert store.get("a/b") == path.read_bytes()
    assert "copy_not_kept key=a/b" in caplog.text


@pytest.mark.parametrize("size_bytes", [4 * MIB, 20 * MIB], ids=["one part", "several parts"])
def test_a_copy_without_room_on_this_machine_is_one_clear_error_and_leaves_nothing(
    store: S3Store, tmp_path: Path, size_bytes: int
) -> None:
    path = big_file(tmp_path, size_bytes)
    store.put_new_file("a/b", path)
    store.put_new("a/small", b"content")

    with small_disk(tmp_path / "scratch", MIB) as scratch:
        with pytest.raises(StorageFull, match=r"no room on this machine for a copy of object 'a/b'.*SCRATCH") as caught:
            store.local_path("a/b")
        left = _files(scratch)
        small = store.local_path("a/small").read_bytes()

    failure = classify(caught.value, rank=1, node="node-1", step=3)
    assert (failure.cause, failure.evidence) == (Cause.STORAGE_UNAVAILABLE, {"error": "StorageFull"})
    assert left == []
    assert small == b"content"


def test_no_copy_is_taken_from_a_scratch_that_others_can_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRUNELLA_SCRATCH", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache = ObjectCache("s3://bucket", limit_bytes=250)
    cache.file("a", "v1", lambda path: path.write_bytes(b"content") and None)
    (tmp_path / f"prunella-{os.getuid()}").chmod(0o777)

    with pytest.raises(ConfigError, match="one that others may write to"):
        cache.file("a", "v1", lambda _: pytest.fail("it is there"))


def test_a_copy_goes_with_its_object(store: S3Store, tmp_path: Path) -> None:
    store.put_new_file("a/b", big_file(tmp_path, 10), keep_copy=True)
    copy = store.local_path("a/b")

    store.delete("a/b")

    assert not copy.exists()
    assert not store.drop_copy("a/b")


def test_kept_copies_nobody_used_obey_the_limit_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path / "scratch"))
    cache = ObjectCache("s3://bucket", limit_bytes=250)

    for name in "abc":
        (tmp_path / name).write_bytes(bytes(100))
        cache.adopt(name, "v1", tmp_path / name)

    assert [cache.drop(name) for name in "abc"] == [False, True, True]


def test_of_copies_in_many_folders_the_last_by_name_stay_and_those_in_use(store: S3Store, tmp_path: Path) -> None:
    for name in ("0000", "0001", "0002", "0003"):
        store.put_new_file(f"all/{name}/file", big_file(tmp_path, 10), keep_copy=True)
        (tmp_path / "big").unlink()
    store.local_path("all/0001/file")  # somebody reads it

    store.limit_copies("all", newest=1)

    assert [store.drop_copy(f"all/{name}/file") for name in ("0000", "0001", "0002", "0003")] == [False, True, False, True]
