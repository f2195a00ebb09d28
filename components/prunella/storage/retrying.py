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
from prunella.storage.store import Content, Stamp, Store, content_of

logger = logging.getLogger(__name__)
T = TypeVar("T")


class WrappedStore:
    """A store around another. Every call to it passes through `_call`, with the key or prefix it is about."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    @property
    def root(self) -> str:
        return self._inner.root

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

    def measure(self, key: str) -> Content:
        return self._call(key, lambda: self._inner.measure(key))

    def drop_copy(self, key: str) -> bool:
        return self._inner.drop_copy(key)  # no business of the network's

    def limit_copies(self, prefix: str, *, newest: int) -> None:
        self._inner.limit_copies(prefix, newest=newest)

    def delete(self, key: str) -> None:
        self._call(key, lambda: self._inner.delete(key))

    def set_aside(self, key: str) -> str:
        return self._call(key, lambda: self._inner.set_aside(key))


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """A stretch of time in which the store did not answer and a call waited for it."""

    start_ns: int
    end_ns: int
    message: str


class RetryingStore(WrappedStore):
    """Waits out `StorageUnavailable` with exponential, jittered delays up to `settings.retry_s` a call.

    A put whose first answer was lost finds its own object on the second try: equal content is success.
    """

    def __init__(self, inner: Store, settings: StorageConfig) -> None:
        super().__init__(inner)
        self._settings = settings
        self.waits: list[Wait] = []

    def wait_out(self, key: str, call: Callable[[], T]) -> T:
        """What `call` returns, for something that only the store inside can do."""
        return self._call(key, call)

    def put_new(self, key: str, data: bytes) -> None:
        self._put(key, lambda: self._inner.put_new(key, data), lambda: self._inner.get(key) == data)

    def put_new_file(self, key: str, path: Path, *, keep_copy: bool = False) -> Content:
        mine: list[Content] = []

        def put() -> None:
            mine.append(self._inner.put_new_file(key, path, keep_copy=keep_copy))

        self._put(key, put, lambda: self._inner.measure(key) == content_of(path))
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
        start_ns = time.time_ns()
        delay_s = self._settings.first_delay_s
        last: StorageUnavailable | None = None
        while True:
            try:
                result = call()
            except StorageUnavailable as error:
                if time.time_ns() - start_ns > self._settings.retry_s * 1e9:
                    raise StorageUnavailable(f"{error}; gave up after {self._settings.retry_s:g} s") from error
                logger.warning("storage_call_retried key=%s delay_s=%.2f error=%s", key, delay_s, error)
                last = error
                time.sleep(random.uniform(0.5, 1.0) * delay_s)
                delay_s = min(2 * delay_s, self._settings.max_delay_s)
            else:
                if last is not None:
                    self.waits.append(Wait(start_ns=start_ns, end_ns=time.time_ns(), message=str(last)))
                return result
