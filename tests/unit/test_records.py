"""Records come back as they were written, or an error says what is wrong before any parser has seen the bytes."""

import dataclasses
import json
import math
import types
import typing
from enum import StrEnum
from typing import Any

import pytest

from prunella import records
from prunella.errors import Cause, ConfigError, DigestMismatch, SchemaTooNew
from prunella.records import (
    FailedRecord,
    Failure,
    GateNodeRecord,
    Health,
    NodeEvent,
    NodeState,
    Record,
    SegmentOpened,
    Stage,
    StageRecord,
    Verdict,
    from_bytes,
    seal,
    sealing,
    stage_record_from_bytes,
    to_bytes,
    unseal,
)

KINDS = [kind for kind in vars(records).values() if isinstance(kind, type) and issubclass(kind, Record) and kind.KIND]


def _example(expected: Any) -> Any:
    """Some valid value of a type, with every container filled."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if dataclasses.is_dataclass(expected):
        return _example_record(typing.cast(type, expected))
    if origin in (typing.Union, types.UnionType):
        return _example(arguments[0])
    if origin is tuple:
        return (_example(arguments[0]), _example(arguments[0]))
    if origin is dict:
        return {"key": _example(arguments[1])}
    if isinstance(expected, type) and issubclass(expected, StrEnum):
        return list(expected)[-1]
    return {str: "text", int: 7, float: 0.1, bool: True, Any: {"nested": [1, None]}}[expected]


def _example_record(kind: type) -> Any:
    values = {name: _example(hint) for name, hint in typing.get_type_hints(kind).items() if name not in ("KIND", "VERSION")}
    return kind(**values)


FAILED = FailedRecord(
    stage=Stage.GATE_NODE,
    verdict=Verdict.UNKNOWN,
    started_ns=1,
    ended_ns=2,
    failure=Failure(cause=Cause.STORAGE_UNAVAILABLE, message="away", evidence={"loss": 1.5}),
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.KIND)
def test_a_record_comes_back_as_it_was_written(kind: type[Record]) -> None:
    record = _example_record(kind)

    data = to_bytes(record)
    copy = from_bytes(kind, data, "here")

    assert copy == record
    assert to_bytes(copy) == data


def test_every_kind_has_its_own_name() -> None:
    names = [kind.KIND for kind in KINDS]

    assert len(names) == len(set(names)) > 15


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.KIND)
def test_a_record_is_frozen(kind: type[Record]) -> None:
    record = _example_record(kind)

    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, dataclasses.fields(kind)[0].name, None)


def test_on_disk_a_record_is_a_seal_and_one_line_of_json() -> None:
    first, second, rest = to_bytes(FAILED).split(b"\n")

    assert set(json.loads(first)) == {"sha256"}
    assert json.loads(second)["schema"] == "failed/1"
    assert rest == b""


def test_any_flipped_byte_is_found_before_parsing() -> None:
    data = to_bytes(FAILED)

    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x01
        with pytest.raises(DigestMismatch, match=r"a/b\.json: the record is damaged"):
            unseal(bytes(damaged), "a/b.json")


@pytest.mark.parametrize("data", [b"", b"{}", b'{"sha256":"00"}\n{}\n', to_bytes(FAILED)[:-1], to_bytes(FAILED) + b"x"])
def test_what_is_no_sealed_record_is_refused(data: bytes) -> None:
    with pytest.raises(DigestMismatch):
        from_bytes(FailedRecord, data, "here")


def test_another_kind_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="here: expected a 'node_event' record, found 'failed'"):
        from_bytes(NodeEvent, to_bytes(FAILED), "here")


def test_a_newer_schema_is_refused_with_advice() -> None:
    data = seal(b'{"schema":"failed/2","surprise":1}\n')

    with pytest.raises(SchemaTooNew, match=r"failed/2 is newer than failed/1.*upgrade"):
        from_bytes(FailedRecord, data, "here")


def test_an_older_schema_is_migrated_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NodeEvent, "VERSION", 3)
    monkeypatch.setitem(sealing._MIGRATIONS, ("node_event", 1), lambda old: {**old, "owner": "nobody"})
    monkeypatch.setitem(sealing._MIGRATIONS, ("node_event", 2), lambda old: {**old, "owner": old["owner"] + "!"})
    data = seal(b'{"schema":"node_event/1","node":"node-0","state":"available","reason":"","at_ns":1}\n')

    event = from_bytes(NodeEvent, data, "here")

    assert event == NodeEvent(node="node-0", state=NodeState.AVAILABLE, owner="nobody!", reason="", at_ns=1)


def test_a_run_that_was_opened_before_commands_said_what_they_carried_on_carried_on_nothing() -> None:
    data = seal(b'{"schema":"segment_opened/1","segment":3,"run_index":0,"run_id":"r","opened_ns":1}\n')

    opened = from_bytes(SegmentOpened, data, "here")

    assert opened == SegmentOpened(segment=3, run_index=0, run_id="r", opened_ns=1, is_carried_on=False)


def test_a_stage_key_holds_either_the_stages_record_or_its_failure() -> None:
    own = GateNodeRecord(
        stage=Stage.GATE_NODE, verdict=Verdict.ACCEPTED, started_ns=1, ended_ns=2, node="n", health=Health.HEALTHY, checks=()
    )

    assert stage_record_from_bytes(GateNodeRecord, to_bytes(own), "here") == own
    assert stage_record_from_bytes(GateNodeRecord, to_bytes(FAILED), "here") == FAILED


@pytest.mark.parametrize(
    ("verdict", "failure"),
    [(Verdict.ACCEPTED, FAILED.failure), (Verdict.REJECTED, None), (Verdict.UNKNOWN, None)],
)
def test_a_failure_goes_with_every_verdict_but_accepted(verdict: Verdict, failure: Failure | None) -> None:
    with pytest.raises(ValueError, match="does not go with"):
        StageRecord(stage=Stage.EVALUATION, verdict=verdict, started_ns=1, ended_ns=2, failure=failure)


def test_a_loss_that_is_not_a_number_survives() -> None:
    record = _example_record(records.ValidationRecord)
    record = dataclasses.replace(record, probe_loss_nats=math.nan)

    copy = from_bytes(records.ValidationRecord, to_bytes(record), "here")

    assert copy.probe_loss_nats is not None
    assert math.isnan(copy.probe_loss_nats)
