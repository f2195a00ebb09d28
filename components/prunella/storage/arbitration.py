"""Whether a store arbitrates: of several writers racing for one key exactly one must win, or nothing fences two commands off.

Found out by racing, because a server may honour the condition one put at a time and lose it in a race (radosgw 16.2 does).
"""

import logging
import uuid
from concurrent.futures import ThreadPoolExecutor

from prunella.errors import KeyExists
from prunella.storage.store import Store

logger = logging.getLogger(__name__)

#: Writers in a race, and races. Source: own choice 2026-11; radosgw 16.2 loses the first.
_WRITERS = 10
_RACES = 3


def try_out(store: Store) -> None:
    """Write an object and remove it.

    Raises:
        ConfigError: the bucket is not there, or these credentials may not write to it.
        StorageUnavailable: it does not answer.
    """
    key = f"probes/{uuid.uuid4().hex}"
    store.put_new(key, b"probe")
    store.delete(key)


def arbitrates(store: Store) -> bool:
    """Whether one writer wins each race. Leaves nothing behind. Raises as `try_out`."""
    winners = [_race(store) for _ in range(_RACES)]
    if winners != [1] * _RACES:
        logger.warning("conditional_put_not_honoured root=%s winners=%s", store.root, winners)
    return winners == [1] * _RACES


def _race(store: Store) -> int:
    """How many of several writers won one key."""
    key = f"probes/{uuid.uuid4().hex}"
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
