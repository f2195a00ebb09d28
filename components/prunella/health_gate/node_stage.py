"""Gate one node by what it can check alone.

Decides whether this node may be offered to training. Trusts the object store to say what is true, and the host's float64
arithmetic as a reference. Never looks at another node, never moves a node in the node ledger: whoever reads the record does.
A store that does not answer is raised as its own cause and says nothing about the node.
"""

import os
import time
from functools import partial
from pathlib import PurePosixPath

import torch

from prunella import ledger as truth
from prunella.config import Config, GateConfig
from prunella.errors import Cause, ConfigError
from prunella.health_gate import checks
from prunella.health_gate.broken_node import is_broken
from prunella.health_gate.checks import Check, Disturb, Measurement, measure
from prunella.health_gate.rules import bounds, judge, worst
from prunella.ledger import Ledger
from prunella.records import (
    CheckResult,
    Failure,
    GateNodeRecord,
    GateNodeRequest,
    Health,
    Json,
    Part,
    Span,
    Stage,
    Verdict,
)
from prunella.scratch import attempt_scratch

_VERDICTS = {
    Health.HEALTHY: Verdict.ACCEPTED,
    Health.UNHEALTHY: Verdict.REJECTED,
    Health.UNKNOWN: Verdict.UNKNOWN,
}


def run(config: Config, request: GateNodeRequest) -> GateNodeRecord:
    """Measure, judge and report this node.

    Raises:
        ConfigError: this process runs on another node than the one it is asked about.
        StorageUnavailable, StorageFull: the object store does not serve this node.
    """
    started_ns = time.time_ns()
    _check_identity(request.node)
    ledger = truth.open_ledger(request.root, request.experiment, settings=config.storage)
    disturb = checks.flip_largest if is_broken(ledger, request) else checks.undisturbed
    measurements = _measure_devices(config, request, disturb) + _measure_surroundings(ledger, request)
    expected = bounds(config.gate, devices=_devices(request))
    results = tuple(judge(taken, expected[taken.check], node=request.node) for taken in measurements)
    return _report(request, results, started_ns)


def _check_identity(node: str) -> None:
    here = os.environ.get("PRUNELLA_NODE", node)
    if here != node:
        raise ConfigError(f"asked to gate node {node!r}, but this process runs on node {here!r}; start it on {node!r}")


def _devices(request: GateNodeRequest) -> int:
    return next((node.devices for node in request.nodes if node.name == request.node), 1)


def _measure_devices(config: Config, request: GateNodeRequest, disturb: Disturb) -> list[Measurement]:
    wanted = _devices(request)
    taken = [measure(Check.DEVICE_COUNT, partial(checks.device_count, wanted))]
    for device in checks.node_devices(wanted):
        taken += _measure_device(config.gate, device, disturb)
    return taken


def _measure_device(gate: GateConfig, device: torch.device, disturb: Disturb) -> list[Measurement]:
    size, where = gate.matrix_size, str(device)
    product = partial(checks.product_error_ulps, size, device, disturb=disturb)
    identity = partial(checks.differing_elements, size, device, disturb=disturb)
    return [
        measure(Check.MATRIX_PRODUCT, product, detail=where),
        measure(Check.REDUCTION, partial(checks.reduction_error_ulps, size, device), detail=where),
        measure(Check.BIT_IDENTITY, identity, detail=where),
        measure(Check.MEMORY_PATTERNS, partial(checks.wrong_words, gate.memory_mib, device), detail=where),
    ]


def _measure_surroundings(ledger: Ledger, request: GateNodeRequest) -> list[Measurement]:
    scratch = attempt_scratch(request.root, request.experiment, request.segment, request.attempt, opened_ns=request.opened_ns)
    start_ns = time.perf_counter_ns()
    probe = checks.probe_store(ledger.store, _probe_key(ledger, request))
    duration_ms = (time.perf_counter_ns() - start_ns) / 1e6
    return [
        measure(Check.FREE_DISK, partial(checks.free_disk_mib, scratch), detail="scratch"),
        Measurement(check=Check.OBJECT_STORE, value=float(probe.wrong_bytes), duration_ms=duration_ms, detail="put and get"),
        Measurement(check=Check.CLOCK_SKEW, value=probe.skew_ms, duration_ms=0.0, detail="object store's stamp; timed there"),
    ]


def _probe_key(ledger: Ledger, request: GateNodeRequest) -> str:
    """A key nobody used before: a second try of the gate probes anew. Sweeps probe beside their records."""
    home = ledger.attempt_prefix(request.segment, request.attempt) if ledger.name else PurePosixPath(request.output).parent
    return f"{home}/probes/{request.node}-{time.time_ns()}-{os.getpid()}.bin"


def _report(request: GateNodeRequest, results: tuple[CheckResult, ...], started_ns: int) -> GateNodeRecord:
    health = worst(result.health for result in results)
    ended_ns = time.time_ns()
    return GateNodeRecord(
        stage=Stage.GATE_NODE,
        verdict=_VERDICTS[health],
        started_ns=started_ns,
        ended_ns=ended_ns,
        failure=_failure(request.node, health, results),
        spans=(Span(part=Part.GATE, start_ns=started_ns, end_ns=ended_ns),),
        node=request.node,
        health=health,
        checks=results,
    )


def _failure(node: str, health: Health, results: tuple[CheckResult, ...]) -> Failure | None:
    if health is Health.HEALTHY:
        return None
    bad = [result for result in results if result.health is health]
    words = "; ".join(f"{result.name} {result.value:g} {result.unit}, expected {result.reference}" for result in bad)
    cause = Cause.NODE_UNHEALTHY if health is Health.UNHEALTHY else Cause.UNKNOWN
    evidence: dict[str, Json] = {result.name: f"{result.value:g} {result.unit} {result.detail}".strip() for result in bad}
    return Failure(cause=cause, message=f"node {node!r} is {health}: {words}", node=node, evidence=evidence)
