"""The object store keeps its one promise, `put_new`, whoever races, dies or runs out of room."""

import errno
import hashlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from prunella.config import StorageConfig
from prunella.errors import ConfigError, KeyExists, KeyMissing, StorageFull, StorageUnavailable
from prunella.storage import Content, FolderStore, RetryingStore, check_key, folder, longest_silence_s, open_store
from prunella.storage.store import TransferCut

_PATIENCE = StorageConfig(retry_s=0.2, first_delay_s=0.001, max_delay_s=0.002)


def _leftovers(store: FolderStore) -> list[Path]:
    return [path for path in Path(store.root).rglob("*") if path.name.startswith(".")]


# ------------------------------------------------------------------------------------------------ keys


@pytest.mark.parametrize("key", ["a", "a/b/c.json", "0000-00-0000/shard-00001-model.safetensors", "k=v/1_2-3.x"])
def test_an_ordinary_key_is_accepted(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize(
    "key", ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "../a", "a/.hidden", "a b", "a\n", "a\\b", "ä", "~/a"]
)
def test_a_key_that_could_leave_the_root_or_be_mangled_is_refused(store: FolderStore, key: str) -> None:
    with pytest.raises(ConfigError, match="object key"):
        store.put_new(key, b"x")


# ------------------------------------------------------------------------------------------------ the folder store


def test_what_was_put_is_what_is_got(store: FolderStore, tmp_path: Path) -> None:
    content = os.urandom(100_000)
    (tmp_path / "local").write_bytes(content)

    store.put_new("a/bytes", content)
    told = store.put_new_file("a/file", tmp_path / "local")

    assert told == store.measure("a/file") == Content(size_bytes=100_000, sha256=hashlib.sha256(content).hexdigest())
    assert store.get("a/bytes") == store.get("a/file") == store.local_path("a/file").read_bytes() == content
    assert store.size_bytes("a/bytes") == 100_000
    assert store.list("a") == ["bytes", "file"]
    assert _leftovers(store) == []


def test_a_key_is_written_once(store: FolderStore, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"second")
    store.put_new("a/b", b"first")

    with pytest.raises(KeyExists, match="'a/b' exists already"):
        store.put_new("a/b", b"second")
    with pytest.raises(KeyExists):
        store.put_new_file("a/b", tmp_path / "local")

    assert store.get("a/b") == b"first"
    assert _leftovers(store) == []


def test_of_many_racing_writers_exactly_one_wins(store: FolderStore) -> None:
    def write(writer: int) -> int | None:
        try:
            FolderStore(store.root).put_new("token", str(writer).encode())
        except KeyExists:
            return None
        return writer

    with ThreadPoolExecutor(8) as pool:
        winners = [writer for writer in pool.map(write, range(64)) if writer is not None]

    assert len(winners) == 1
    assert store.get("token") == str(winners[0]).encode()


@pytest.mark.parametrize(
    "read",
    [
        lambda store: store.get("a/b"),
        lambda store: store.size_bytes("a/b"),
        lambda store: store.local_path("a/b"),
        lambda store: store.measure("a/b"),
        lambda store: store.set_aside("a/b"),
    ],
    ids=["get", "size_bytes", "local_path", "measure", "set_aside"],
)
def test_absence_is_told_from_failure(store: FolderStore, read: Callable[[FolderStore], object]) -> None:
    with pytest.raises(KeyMissing, match="no object 'a/b'"):
        read(store)


def test_an_absent_key_does_not_exist_and_may_be_deleted(store: FolderStore) -> None:
    store.delete("a/b")

    assert not store.exists("a/b")
    assert store.list("a") == []


def test_a_damaged_object_set_aside_makes_room_and_is_kept(store: FolderStore) -> None:
    store.put_new("a/b", b"damaged")

    kept = store.set_aside("a/b")
    store.put_new("a/b", b"whole")

    assert store.get(kept) == b"damaged"
    assert store.get("a/b") == b"whole"


def test_setting_aside_what_an_earlier_try_has_moved_is_done(store: FolderStore) -> None:
    store.put_new("a/b", b"damaged")

    moved = [store.set_aside("a/b", "set-aside/a/b.1") for _ in range(2)]

    assert moved == ["set-aside/a/b.1"] * 2
    assert store.get("set-aside/a/b.1") == b"damaged"


def test_a_placed_file_shows_the_object_and_tells_nothing_new(store: FolderStore, tmp_path: Path) -> None:
    store.put_new("a/b", b"content")

    assert store.place("a/b", tmp_path / "placed") is None
    assert (tmp_path / "placed").read_bytes() == b"content"


@contextmanager
def no_room_for_more_than_4_kib() -> Iterator[None]:
    """Only for the call itself: the limit holds for whatever this process writes, also for pytest's own log."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_store_leaves_nothing_half_written(store: FolderStore) -> None:
    with no_room_for_more_than_4_kib(), pytest.raises(StorageFull, match=r"no room for object 'a/b'.*free space"):
        store.put_new("a/b", bytes(8192))

    assert not store.exists("a/b")
    assert _leftovers(store) == []


def test_a_writer_killed_half_way_leaves_no_object(store: FolderStore) -> None:
    program = (
        "import os, signal, sys\n"
        "from prunella.storage import folder\n"
        "folder._fsync = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "folder.FolderStore(sys.argv[1]).put_new('a/b', b'half')\n"
    )

    answer = subprocess.run([sys.executable, "-c", program, store.root], check=False)

    assert answer.returncode == -9
    assert not store.exists("a/b")
    assert store.list("a") == []


def test_what_a_killed_writer_left_goes_where_nobody_may_write_any_more(store: FolderStore) -> None:
    program = (
        "import os, signal, sys\n"
        "from prunella.storage import folder\n"
        "folder._fsync = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "folder.FolderStore(sys.argv[1]).put_new(sys.argv[2], b'half')\n"
    )
    for key in ("all/old/b", "all/living/b"):
        subprocess.run([sys.executable, "-c", program, store.root, key], check=False)

    cleared = store.clear_unfinished("all", lambda key: key.startswith("all/old/"))

    assert [path.parent.name for path in _leftovers(store)] == ["living"]
    assert len(cleared) == 1


def test_a_root_that_is_no_folder_is_out_of_reach(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file")
    store = FolderStore(str(tmp_path / "root"))

    with pytest.raises(StorageUnavailable, match="out of reach"):
        store.get("a/b")


def test_a_root_that_went_away_is_out_of_reach_and_never_made_anew(tmp_path: Path) -> None:
    store = FolderStore(str(tmp_path / "root"))

    for act in (lambda: store.put_new("a/b/c", b""), lambda: store.get("a/b"), lambda: store.exists("a/b")):
        with pytest.raises(StorageUnavailable, match="the root is not there; mount it, or correct --root"):
            act()
    assert not (tmp_path / "root").exists()


def test_a_root_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="gs roots are not supported; give a local folder or s3://BUCKET/PREFIX"):
        open_store("gs://x")


# ------------------------------------------------------------------------------------------------ patience


class _FlakyStore(FolderStore):
    """The outside world at its door: the first calls are answered with an I/O error, before or after they took effect."""

    def __init__(self, root: str, failures: int, *, fails_after_the_effect: bool = False) -> None:
        super().__init__(root)
        self._failures = failures
        self._fails_after = fails_after_the_effect

    def _commit(self, key: str, write: Callable[[Path], object]) -> None:
        if not self._fails_after:
            self._maybe_fail(key)
        super()._commit(key, write)
        self._maybe_fail(key)

    def get(self, key: str) -> bytes:
        if not self._fails_after:
            self._maybe_fail(key)
        return super().get(key)

    def _maybe_fail(self, key: str) -> None:
        if self._failures > 0:
            self._failures -= 1
            with self._translated(key):
                raise OSError(errno.EIO, "Input/output error")


def test_a_short_outage_is_waited_out_and_remembered(root: str) -> None:
    store = RetryingStore(_FlakyStore(root, failures=2), _PATIENCE)

    store.put_new("a", b"x")
    content = store.get("a")

    assert content == b"x"
    [wait] = store.waits
    assert wait.end_ns > wait.start_ns
    assert "'a' is out of reach" in wait.message


def test_a_long_outage_becomes_an_error_that_says_how_long_it_was_waited_for(root: str) -> None:
    store = RetryingStore(_FlakyStore(root, failures=10_000), _PATIENCE)

    with pytest.raises(StorageUnavailable, match=r"out of reach .*; gave up after 0\.2 s"):
        store.get("a")

    assert store.waits == []


class _Clock:
    """Time that passes only when somebody says so."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def let_pass(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


class _SlowStore(FolderStore):
    """Each read takes a while; the first ones end in these failures."""

    def __init__(self, root: str, clock: _Clock, failures: list[StorageUnavailable], *, read_s: float) -> None:
        super().__init__(root)
        self._clock, self._failures, self._read_s = clock, iter(failures), read_s

    def get(self, key: str) -> bytes:
        self._clock.let_pass(self._read_s)
        if (failure := next(self._failures, None)) is not None:
            raise failure
        return super().get(key)


def _patient(root: str, failures: list[StorageUnavailable], *, read_s: float, retry_s: float) -> RetryingStore:
    """Around a slow store that holds `a`."""
    FolderStore(root).put_new("a", b"content")
    clock = _Clock()
    settings = StorageConfig(retry_s=retry_s, first_delay_s=0.1, max_delay_s=0.1)
    return RetryingStore(_SlowStore(root, clock, failures, read_s=read_s), settings, clock_ns=clock, sleep=clock.let_pass)


def test_patience_begins_with_the_first_failure_not_with_the_call(root: str) -> None:
    store = _patient(root, [StorageUnavailable("503")], read_s=3600.0, retry_s=60.0)

    content = store.get("a")

    assert content == b"content"


def test_time_in_which_something_was_sent_is_no_outage(root: str) -> None:
    store = _patient(root, [StorageUnavailable("503")], read_s=3600.0, retry_s=60.0)

    store.get("a")

    [wait] = store.waits
    assert wait.start_ns == 3600 * 10**9
    assert wait.end_ns - wait.start_ns <= 10**8


def test_patience_begins_again_when_part_of_a_file_had_arrived(root: str) -> None:
    store = _patient(root, [TransferCut("503")] * 5, read_s=50.0, retry_s=60.0)

    content = store.get("a")

    assert content == b"content"
    assert len(store.waits) == 5
    assert sum(wait.end_ns - wait.start_ns for wait in store.waits) <= 5 * 10**8


def test_patience_ends_where_a_store_that_is_tried_again_moves_nothing(root: str) -> None:
    store = _patient(root, [StorageUnavailable("503")] * 5, read_s=50.0, retry_s=60.0)

    with pytest.raises(StorageUnavailable, match="503; gave up after 60 s"):
        store.get("a")

    assert store.waits == []


def test_no_patience_is_no_second_try(root: str) -> None:
    store = _patient(root, [StorageUnavailable("503")], read_s=0.0, retry_s=0.0)

    with pytest.raises(StorageUnavailable, match="503; gave up after 0 s"):
        store.get("a")


def test_a_store_that_never_answers_is_given_up_within_its_longest_silence(root: str) -> None:
    clock, settings = _Clock(), StorageConfig(retry_s=60.0, first_delay_s=2.0, max_delay_s=2.0)
    silent = _SlowStore(root, clock, [StorageUnavailable("timed out")] * 100, read_s=35.0)

    with pytest.raises(StorageUnavailable, match="timed out; gave up after 60 s"):
        RetryingStore(silent, settings, clock_ns=clock, sleep=clock.let_pass).get("a")

    assert 60 < clock.now_ns / 1e9 <= longest_silence_s(settings)


def test_every_try_is_a_sign_of_life(root: str) -> None:
    store = RetryingStore(_FlakyStore(root, failures=2), _PATIENCE)
    before = store.moves

    store.put_new("a", b"x")

    assert store.moves == before + 3


def test_every_piece_of_a_file_is_a_sign_of_life(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "_PIECE_BYTES", 1000)
    (tmp_path / "local").write_bytes(content := os.urandom(3500))
    store = RetryingStore(FolderStore(root), _PATIENCE)

    store.put_new_file("a", tmp_path / "local")

    assert store.get("a") == content
    assert store.moves == 3 + 2


@pytest.mark.parametrize("size_bytes", [0, 999, 1000, 2000])
def test_a_file_that_is_copied_in_pieces_arrives_whole(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    monkeypatch.setattr(folder, "_PIECE_BYTES", 1000)
    (tmp_path / "local").write_bytes(content := os.urandom(size_bytes))

    store.put_new_file("a", tmp_path / "local")

    assert store.get("a") == content


def test_every_try_to_set_aside_means_the_same_place(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inner, places = FolderStore(root), list[str | None]()
    inner.put_new("a", b"damaged")
    move = inner.set_aside

    def move_without_an_answer(key: str, target: str | None = None) -> str:
        places.append(target)
        where = move(key, target)
        if len(places) == 1:
            raise StorageUnavailable("the answer was lost")
        return where

    monkeypatch.setattr(inner, "set_aside", move_without_an_answer)

    where = RetryingStore(inner, _PATIENCE).set_aside("a")

    assert places == [where, where]
    assert inner.get(where) == b"damaged"


def test_a_put_whose_answer_was_lost_finds_its_own_object(root: str) -> None:
    store = RetryingStore(_FlakyStore(root, failures=1, fails_after_the_effect=True), _PATIENCE)

    store.put_new("a", b"mine")

    assert FolderStore(root).get("a") == b"mine"


def test_after_a_lost_answer_somebody_elses_object_is_not_taken_for_ones_own(root: str) -> None:
    FolderStore(root).put_new("a", b"theirs")
    store = RetryingStore(_FlakyStore(root, failures=1), _PATIENCE)

    with pytest.raises(KeyExists):
        store.put_new("a", b"mine")


def test_equal_content_written_by_somebody_else_first_is_still_taken(root: str) -> None:
    FolderStore(root).put_new("a", b"same")
    store = RetryingStore(FolderStore(root), _PATIENCE)

    with pytest.raises(KeyExists):
        store.put_new("a", b"same")


def test_a_full_store_is_not_retried(root: str) -> None:
    store = RetryingStore(FolderStore(root), StorageConfig(retry_s=3600))

    with no_room_for_more_than_4_kib(), pytest.raises(StorageFull):
        store.put_new("a", bytes(8192))
