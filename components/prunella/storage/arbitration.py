"""Whether a store arbitrates: of several writers racing for one key exactly one must win, or nothing fences two commands off.

Found out by trying, because a server may honour the condition of one put at a time and lose it in a race, or not look at it
when an upload in parts is committed (radosgw 16.2 does not). Each request is waited out by itself, so that a network on which
some fail needs no luck; and what was tried with is removed.
"""

import contextlib
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from prunella.errors import KeyExists, PrunellaError, StorageUnavailable
from prunella.storage.parts import Upload
from prunella.storage.refusals import UploadLost
from prunella.storage.retrying import RetryingStore
from prunella.storage.s3 import S3Store
from prunella.storage.store import Store

#: Writers in a race, and races. Source: own choice 2026-11.
_WRITERS = 10
_RACES = 3
#: Uploads in parts that may be lost before one is committed or refused. Source: own choice 2026-11; healthy servers lose none.
_UPLOADS = 3
#: What is there, and what must not replace it.
_FIRST, _SECOND = b"first", b"second"


def try_out(bucket: S3Store, patient: RetryingStore) -> None:
    """Write an object and remove it.

    Args:
        patient: retries around `bucket`.

    Raises:
        ConfigError: the bucket is not there, or these credentials may not write to it.
        StorageUnavailable: it does not answer.
    """
    with _probe(bucket, patient) as key:
        patient.put_new(key, _FIRST)


def find_overwriting(bucket: S3Store, patient: RetryingStore) -> str | None:
    """How an object that was there was replaced, or None: one writer wins, each time. Leaves nothing behind.

    Args and raises as `try_out`.
    """
    with _probe(bucket, patient) as key:
        if _is_replaced_by_parts(bucket, patient, key):
            return "an upload in parts replaced an object that was there"
    for _ in range(_RACES):
        with _probe(bucket, patient) as key:
            winners = _race(patient, key)
        if winners != 1:
            return f"of {_WRITERS} writers racing for one key {winners} succeeded"
    return None


@contextlib.contextmanager
def _probe(bucket: S3Store, patient: RetryingStore) -> Iterator[str]:
    """A key to try things with; what is there afterwards is removed."""
    key = f"probes/{uuid.uuid4().hex}"
    try:
        yield key
    except PrunellaError:
        with contextlib.suppress(PrunellaError):  # the failure was waited for already: once more, without patience
            bucket.delete(key)
        raise
    patient.delete(key)


def _is_replaced_by_parts(bucket: S3Store, patient: RetryingStore, key: str) -> bool:
    """Whether an upload in parts replaces what is there. Only a refusal says that it does not: an upload may just be lost."""
    patient.put_new(key, _FIRST)
    for _ in range(_UPLOADS):
        if _is_refused(bucket, patient, key):
            return False
        if patient.get(key) != _FIRST:
            return True
    raise StorageUnavailable(f"{bucket.root}: {_UPLOADS} uploads in parts of object {key!r} were neither committed nor refused")


def _is_refused(bucket: S3Store, patient: RetryingStore, key: str) -> bool:
    upload = patient.wait_out(key, lambda: bucket.begin(key))
    try:
        patient.wait_out(key, lambda: bucket.send_part(key, upload, 1, _SECOND))
        is_refused = patient.wait_out(key, lambda: _is_commit_refused(bucket, key, upload))
    except PrunellaError:
        with contextlib.suppress(PrunellaError):  # as in `_probe`
            bucket.abort(key, upload)
        raise
    patient.wait_out(key, lambda: bucket.abort(key, upload))
    return is_refused


def _is_commit_refused(bucket: S3Store, key: str, upload: Upload) -> bool:
    try:
        bucket.commit(key, upload)
    except KeyExists:
        return True
    except UploadLost:  # committed by an earlier try whose answer was lost, or really lost: what is there tells
        return False
    return False


def _race(store: Store, key: str) -> int:
    """How many of several writers won one key."""
    with ThreadPoolExecutor(_WRITERS) as pool:
        return sum(pool.map(lambda number: _wins(store, key, number), range(_WRITERS)))


def _wins(store: Store, key: str, number: int) -> bool:
    try:
        store.put_new(key, str(number).encode())
    except KeyExists:
        return False
    return True
