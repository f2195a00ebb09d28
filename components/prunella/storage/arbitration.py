"""Whether a store arbitrates: of several writers racing for one key exactly one must win, or nothing fences two commands off.

Found out by trying, because a server may honour the condition of one put at a time and lose it in a race, or not look at it
when an upload in parts is committed (radosgw 16.2 does not).
"""

import uuid
from concurrent.futures import ThreadPoolExecutor

from prunella.errors import KeyExists
from prunella.storage.retrying import RetryingStore
from prunella.storage.s3 import S3Store
from prunella.storage.store import Store

#: Writers in a race, and races. Source: own choice 2026-11.
_WRITERS = 10
_RACES = 3


def try_out(store: Store) -> None:
    """Write an object and remove it.

    Raises:
        ConfigError: the bucket is not there, or these credentials may not write to it.
        StorageUnavailable: it does not answer.
    """
    key = _probe()
    store.put_new(key, b"probe")
    store.delete(key)


def find_overwriting(bucket: S3Store, patient: RetryingStore) -> str | None:
    """How an object that was there was replaced, or None: one writer wins, each time. Leaves nothing behind.

    Args:
        patient: retries around `bucket`.

    Raises as `try_out`.
    """
    if not patient.wait_out("probes", lambda: bucket.keeps_what_is_there(_probe())):
        return "an upload in parts replaced an object that was there"
    winners = [_race(patient) for _ in range(_RACES)]
    if winners != [1] * _RACES:
        return f"of {_WRITERS} writers racing for one key {max(winners)} succeeded"
    return None


def _probe() -> str:
    return f"probes/{uuid.uuid4().hex}"


def _race(store: Store) -> int:
    """How many of several writers won one key."""
    key = _probe()
    try:
        with ThreadPoolExecutor(_WRITERS) as pool:
            return sum(pool.map(lambda number: _wins(store, key, number), range(_WRITERS)))
    finally:
        store.delete(key)


def _wins(store: Store, key: str, number: int) -> bool:
    try:
        store.put_new(key, str(number).encode())
    except KeyExists:
        return False
    return True
