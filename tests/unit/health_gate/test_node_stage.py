"""`gate_node` end to end, in this process, on this machine."""

from pathlib import Path

import pytest

from prunella import config_text
from prunella.config import Config, GateConfig, StorageConfig
from prunella.errors import Cause, ConfigError, StorageUnavailable
from prunella.fleet.lifecycle import Fleet, Owner
from prunella.fleet.sweep import sweep_requests
from prunella.health_gate import node_stage
from prunella.ledger import Ledger
from prunella.records import (
    ExperimentRecord,
    GateNodeRecord,
    GateNodeRequest,
    Health,
    NodeRef,
    Part,
    Stage,
    Verdict,
    from_bytes,
    to_bytes,
)
from prunella.storage import FolderStore

CONFIG = Config(gate=GateConfig(matrix_size=32, memory_mib=1), storage=StorageConfig(retry_s=0.1))


@pytest.fixture(autouse=True)
def _own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELLA_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("PRUNELLA_NODE", raising=False)


def open_experiment(root: Path, *faults: str) -> Ledger:
    ledger = Ledger(FolderStore(str(root)), "exp")
    record = ExperimentRecord(
        name="exp", opened_ns=0, config=config_text.to_mapping(CONFIG), config_digest="d", faults=faults, versions={}
    )
    ledger.put(ledger.experiment_key, record)
    return ledger


def request(root: Path, node: str = "node-1", *, segment: int = 0, attempt: int = 0, devices: int = 1) -> GateNodeRequest:
    return GateNodeRequest(
        stage=Stage.GATE_NODE,
        root=str(root),
        experiment="exp",
        config_digest="d",
        output=f"experiments/exp/segments/{segment:04d}/attempts/{attempt:02d}/records/gate_node-{node}.json",
        segment=segment,
        attempt=attempt,
        nodes=(NodeRef(name=node, devices=devices),),
        node=node,
    )


def failed_checks(record: GateNodeRecord) -> list[str]:
    return [check.name for check in record.checks if check.health is not Health.HEALTHY]


def test_a_healthy_node_passes_every_check(tmp_path: Path) -> None:
    open_experiment(tmp_path)

    record = node_stage.run(CONFIG, request(tmp_path, devices=4))

    assert (record.verdict, record.health, record.failure) == (Verdict.ACCEPTED, Health.HEALTHY, None)
    assert [check.name for check in record.checks] == [
        "device_count",
        "matrix_product",
        "reduction",
        "bit_identity",
        "memory_patterns",
        "free_disk",
        "object_store",
        "clock_skew",
    ]
    assert [(span.part, span.start_ns, span.end_ns) for span in record.spans] == [
        (Part.GATE, record.started_ns, record.ended_ns)
    ]
    assert from_bytes(GateNodeRecord, to_bytes(record), "here") == record


def test_the_gate_can_be_repeated_on_the_same_attempt(tmp_path: Path) -> None:
    open_experiment(tmp_path)

    verdicts = [node_stage.run(CONFIG, request(tmp_path)).verdict for _ in range(2)]

    assert verdicts == [Verdict.ACCEPTED, Verdict.ACCEPTED]


def test_a_bad_node_is_caught_by_its_arithmetic_from_its_segment_on_until_repaired(tmp_path: Path) -> None:
    ledger = open_experiment(tmp_path, "bad-node:node=node-1,segment=1")
    fleet = Fleet(ledger.store)
    early = node_stage.run(CONFIG, request(tmp_path))
    caught = node_stage.run(CONFIG, request(tmp_path, segment=1))
    again = node_stage.run(CONFIG, request(tmp_path, segment=1, attempt=1))
    other = node_stage.run(CONFIG, request(tmp_path, "node-0", segment=1))
    fleet.cordon("node-1", Owner.GATE, "wrong products")
    fleet.uncordon("node-1", Owner.OPERATOR, "board replaced")

    repaired = node_stage.run(CONFIG, request(tmp_path, segment=2))

    assert [early.health, caught.health, again.health, other.health, repaired.health] == [
        Health.HEALTHY,
        Health.UNHEALTHY,
        Health.UNHEALTHY,
        Health.HEALTHY,
        Health.HEALTHY,
    ]
    assert failed_checks(caught) == ["matrix_product"]
    assert caught.failure is not None
    assert (caught.failure.cause, caught.failure.node) == (Cause.NODE_UNHEALTHY, "node-1")
    assert "expected at most 64 ulps" in caught.failure.message


def test_a_return_that_no_person_made_does_not_repair_a_bad_node(tmp_path: Path) -> None:
    ledger = open_experiment(tmp_path, "bad-node:node=node-1,segment=0")
    node_stage.run(CONFIG, request(tmp_path))
    Fleet(ledger.store).doubt("node-1", Owner.GATE, "a later gate left no record")

    record = node_stage.run(CONFIG, request(tmp_path, attempt=1))

    assert record.health is Health.UNHEALTHY


def test_a_sweep_needs_no_experiment_and_still_sees_a_bad_node(tmp_path: Path) -> None:
    open_experiment(tmp_path, "bad-node:node=node-1,segment=0")
    nodes = (NodeRef(name="node-0"), NodeRef(name="node-1"))
    healthy_before = [node_stage.run(CONFIG, r).health for r in sweep_requests(str(tmp_path), "a", nodes, config_digest="d")]
    node_stage.run(CONFIG, request(tmp_path))

    after = [node_stage.run(CONFIG, r).health for r in sweep_requests(str(tmp_path), "b", nodes, config_digest="d")]

    assert healthy_before == [Health.HEALTHY, Health.HEALTHY]
    assert after == [Health.HEALTHY, Health.UNHEALTHY]


def test_too_little_free_disk_is_unhealthy(tmp_path: Path) -> None:
    open_experiment(tmp_path)
    config = Config(gate=GateConfig(matrix_size=16, memory_mib=1, min_free_disk_mib=2**40))

    record = node_stage.run(config, request(tmp_path))

    assert failed_checks(record) == ["free_disk"]
    assert record.verdict is Verdict.REJECTED


def test_a_store_that_is_away_is_its_own_cause_and_says_nothing_about_the_node(tmp_path: Path) -> None:
    ledger = open_experiment(tmp_path, "storage-down:seconds=60")
    switch = ledger.fault_switch()
    assert switch is not None
    switch.fire(switch.of_kind("storage-down")[0])

    with pytest.raises(StorageUnavailable):
        node_stage.run(CONFIG, request(tmp_path))


def test_a_process_on_another_node_refuses_to_speak_for_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_experiment(tmp_path)
    monkeypatch.setenv("PRUNELLA_NODE", "node-0")

    with pytest.raises(ConfigError, match="runs on node 'node-0'"):
        node_stage.run(CONFIG, request(tmp_path))
