"""Records as bytes: a line with the sha256, then canonical JSON; damage is found before any parser runs.

Older versions are migrated by the pure functions in `_MIGRATIONS`, newer ones are refused with advice.
"""

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

from prunella.codec import canonical_json, decode, encode
from prunella.errors import ConfigError, DigestMismatch, SchemaTooNew
from prunella.records.answers import FailedRecord, StageRecord
from prunella.records.parts import Record
from prunella.redaction import redacted_words

R = TypeVar("R", bound=Record)
S = TypeVar("S", bound=StageRecord)

_SEAL = re.compile(rb'\{"sha256":"([0-9a-f]{64})"\}\n')
_SEAL_BYTES = len(b'{"sha256":""}\n') + 64

#: (kind, version) -> function from that version's JSON object to the next version's.
_MIGRATIONS: dict[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]] = {
    ("segment_opened", 1): lambda old: {**old, "is_carried_on": False},
}


def seal(body: bytes) -> bytes:
    """`body` with a line in front that carries its sha256."""
    return b'{"sha256":"%s"}\n' % hashlib.sha256(body).hexdigest().encode() + body


def unseal(data: bytes, where: str) -> bytes:
    """The body of a sealed record.

    Raises:
        DigestMismatch: the seal is missing or the body is not the one that was written.
    """
    match = _SEAL.match(data)
    body = data[_SEAL_BYTES:]
    if match is None or hashlib.sha256(body).hexdigest().encode() != match.group(1):
        raise DigestMismatch(
            f"{where}: the record is damaged (its bytes do not have the sha256 in its first line); "
            "it was changed outside Prunella: restore it from a copy of the root"
        )
    return body


def to_bytes(record: Record) -> bytes:
    """The sealed bytes of a record, with no secret of the environment in its words."""
    kind = type(record)
    return seal(canonical_json({"schema": f"{kind.KIND}/{kind.VERSION}", **redacted_words(encode(record))}) + b"\n")


def from_bytes(expected: type[R], data: bytes, where: str) -> R:
    """Read a record of kind `expected`.

    Raises:
        DigestMismatch: the bytes are damaged.
        SchemaTooNew: a newer Prunella wrote it.
        ConfigError: it is a record of another kind, or malformed.
    """
    fields = json.loads(unseal(data, where))
    kind, _, version = str(fields.pop("schema", "")).partition("/")
    if kind != expected.KIND:
        raise ConfigError(f"{where}: expected a {expected.KIND!r} record, found {kind!r}")
    if int(version) > expected.VERSION:
        raise SchemaTooNew(
            f"{where}: schema {kind}/{version} is newer than {kind}/{expected.VERSION}, which this Prunella writes; upgrade it"
        )
    for old in range(int(version), expected.VERSION):
        fields = _MIGRATIONS[kind, old](fields)
    return decode(expected, fields, where)


def stage_record_from_bytes(expected: type[S], data: bytes, where: str) -> S | FailedRecord:
    """Like `from_bytes`, for a key that holds either the stage's own record or its `FailedRecord`."""
    kind = str(json.loads(unseal(data, where)).get("schema", "")).partition("/")[0]
    return from_bytes(FailedRecord, data, where) if kind == FailedRecord.KIND else from_bytes(expected, data, where)
