"""Stores around a store: each call goes through one place, which may wait, or refuse."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from prunella.config import StorageConfig
from prunella.errors import KeyExists, StorageUnavailable
from prunella.storage.client import REQUEST_SILENCE_S
from prunella.storage.store import Content, Stamp, Store, TransferCut, aside, content_of

logger = logging.getLogger(__name__)
T = TypeVar("T")


def longest_silence_s(settings: StorageConfig) -> float:
    """How long a `RetryingStore` over a bucket may show no progress before it gives up, in seconds.

    Its first try fails in silence, and patience begins; the last try begins up to one delay after patience has ended, and fails
    in silence too, as does the request by which what it began is forgotten.
    """
    return REQUEST_SILENCE_S + settings.retry_s + settings.max_delay_s + 2 * REQUEST_SILENCE_S


class WrappedStore:
    """A store around another. Every call to it passes through `_call`, with the key or prefix it is about."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    @property
    def root(self) -> str:
        return self._inner.root

    @property
    def moves(self) -> int:
        return self._inner.moves

    @property
    def copies_limit_bytes(self) -> int | None:
        return self._inner.copies_limit_bytes

    def _call(self, key: str, call: Callable[[], T]) -> T:
        raise NotImplementedError

    def put_new(self, key: str, data: bytes) -> None:
        self._call(key, lambda: self._inner.put_new(key, data))

    def put_new_file(self, key: str, path: Path, *, keep_copy: bool = False) -> Content:
        return self._call(key, lambda: self._inner.put_new_file(key, path, keep_copy=keep_copy))

    def get(self, key: str) -> bytes:
        return self._call(key, lambda: self._inner.get(key))

    def exists(self, key: str) -> bool:
        return self._call(key, lambda: self._inner.exists(key))

    def size_bytes(self, key: str) -> int:
        return self._call(key, lambda: self._inner.size_bytes(key))

    def stamp(self, key: str) -> Stamp:
        return self._call(key, lambda: self._inner.stamp(key))

    def list(self, prefix: str) -> list[str]:
        return self._call(prefix, lambda: self._inner.list(prefix))

    def local_path(self, key: str) -> Path:
        return self._call(key, lambda: self._inner.local_path(key))

    def place(self, key: str, path: Path) -> Content | None:
        return self._call(key, lambda: self._inner.place(key, path))

    def measure(self, key: str) -> Content:
        return self._call(key, lambda: self._inner.measure(key))

    def drop_copy(self, key: str) -> bool:
        return self._inner.drop_copy(key)  # no business of the network's

    def limit_copies(self, prefix: str, *, newest: int) -> None:
        self._inner.limit_copies(prefix, newest=newest)

    def delete(self, key: str) -> None:
        self._call(key, lambda: self._inner.delete(key))

    def give_up(self, key: str) -> None:
        self._inner.give_up(key)  # once: it is the end of a call that was waited for already

    def clear_unfinished(self, prefix: str, is_dead: Callable[[str], bool]) -> tuple[str, ...]:
        return self._call(prefix, lambda: self._inner.clear_unfinished(prefix, is_dead))

    def set_aside(self, key: str, target: str | None = None) -> str:
        place = target or aside(key)  # chosen once: each try means the same place
        return self._call(key, lambda: self._inner.set_aside(key, place))


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """A stretch of time in which the store did not answer and a call waited for it.

    From the first failure to the beginning of the try that was answered: time in which something was sent is no outage.
    """

    start_ns: int
    end_ns: int
    message: str


@dataclass(slots=True)
class _Silence:
    """Since when the store has not answered, what it said last, and how long to wait before the next try."""

    start_ns: int
    message: str
    delay_s: float


class RetryingStore(WrappedStore):
    """Waits out `StorageUnavailable` with exponential, jittered delays, for up to `settings.retry_s` of silence.

    Silence begins with a failure, never with the call: a file that takes an hour to send has as much patience after that hour
    as an object that takes a millisecond. It ends when a try succeeds, and when one that fails has moved part of a file
    (`TransferCut`): the store did answer, so that patience begins again. A file has only so many parts, so that this ends.

    A put whose first answer was lost finds its own object on the second try: equal content is success.

    Args:
        clock_ns, sleep: the time, and how to let it pass, for tests.
    """

    def __init__(
        self,
        inner: Store,
        settings: StorageConfig,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(inner)
        self._settings = settings
        self._clock_ns = clock_ns
        self._sleep = sleep
        self._tries = 0
        self.waits: list[Wait] = []

    @property
    def moves(self) -> int:
        return self._tries + self._inner.moves

    def wait_out(self, key: str, call: Callable[[], T]) -> T:
        """What `call` returns, for something that only the store inside can do."""
        return self._call(key, call)

    def put_new(self, key: str, data: bytes) -> None:
        self._put(key, lambda: self._inner.put_new(key, data), lambda: self._inner.get(key) == data)

    def put_new_file(self, key: str, path: Path, *, keep_copy: bool = False) -> Content:
        mine: list[Content] = []

        def put() -> None:
            mine.append(self._inner.put_new_file(key, path, keep_copy=keep_copy))

        try:
            self._put(key, put, lambda: self._inner.measure(key) == content_of(path))
        except StorageUnavailable:
            self.give_up(key)
            raise
        return mine[0] if mine else content_of(path)

    def _put(self, key: str, put: Callable[[], None], is_mine: Callable[[], bool]) -> None:
        tries = 0

        def attempt() -> None:
            nonlocal tries
            tries += 1
            try:
                put()
            except KeyExists:
                if tries == 1 or not is_mine():
                    raise

        self._call(key, attempt)

    def _call(self, key: str, call: Callable[[], T]) -> T:
        silence: _Silence | None = None
        while True:
            began_ns = self._clock_ns()
            self._tries += 1
            try:
                result = call()
            except StorageUnavailable as error:
                if isinstance(error, TransferCut):
                    self._end(silence, began_ns)
                    silence = None
                silence = self._go_on(silence, error)
                self._pause(key, silence)
            else:
                self._end(silence, began_ns)
                return result

    def _go_on(self, silence: _Silence | None, error: StorageUnavailable) -> _Silence:
        """The silence with one more failure in it. Raises StorageUnavailable when it has lasted too long."""
        now_ns = self._clock_ns()
        silence = silence or _Silence(start_ns=now_ns, message=str(error), delay_s=self._settings.first_delay_s)
        if now_ns - silence.start_ns >= self._settings.retry_s * 1e9:
            raise StorageUnavailable(f"{error}; gave up after {self._settings.retry_s:g} s") from error
        silence.message = str(error)
        return silence

    def _pause(self, key: str, silence: _Silence) -> None:
        logger.warning("storage_call_retried key=%s delay_s=%.2f error=%s", key, silence.delay_s, silence.message)
        self._sleep(random.uniform(0.5, 1.0) * silence.delay_s)
        silence.delay_s = min(2 * silence.delay_s, self._settings.max_delay_s)

    def _end(self, silence: _Silence | None, end_ns: int) -> None:
        """The store answers: remember how long it had not."""
        if silence is not None:
            self.waits.append(Wait(start_ns=silence.start_ns, end_ns=end_ns, message=silence.message))
