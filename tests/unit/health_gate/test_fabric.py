"""`gate_fabric` with real processes and gloo, and the rules of blame."""

import os
import signal
from pathlib import Path

import pytest
import torch

from prunella.config import Config, GateConfig
from prunella.errors import Cause
from prunella.health_gate import fabric_stage
from prunella.health_gate.fabric_exchanges import WORDS, compare, payload
from prunella.health_gate.fabric_report import RankReport, StepReport
from prunella.health_gate.fabric_rules import Member, conclude
from prunella.node_processes import LocalLauncher, LocalProcess
from prunella.records import (
    GateFabricRecord,
    GateFabricRequest,
    Health,
    NodeRef,
    Part,
    Stage,
    Verdict,
    from_bytes,
    to_bytes,
)
from waiting import wait_until


class Launcher(LocalLauncher):
    """Starts real processes, remembers them, and lets one node misbehave."""

    def __init__(self, *, never: str = "", stopped_after_arrival: str = "", killed_after_arrival: str = "") -> None:
        self.never = never
        self.signals = {stopped_after_arrival: signal.SIGSTOP, killed_after_arrival: signal.SIGKILL}
        self.started: list[LocalProcess] = []

    def start(self, node: NodeRef, command: list[str], *, log: Path, environment: dict[str, str] | None = None) -> LocalProcess:
        process = super().start(node, command, log=log, environment=environment)
        self.started.append(process)
        if node.name == self.never:
            os.kill(process.pid, signal.SIGSTOP)
        if node.name in self.signals:
            wait_until((log.parent / f"arrived-{(environment or {})['RANK']}").exists, f"{node.name} arrived")
            os.kill(process.pid, self.signals[node.name])
        return process


def run(
    root: Path, launcher: Launcher, *nodes: str, wanted: int = 2, devices: int = 1, timeout_s: float = 60.0
) -> GateFabricRecord:
    request = GateFabricRequest(
        stage=Stage.GATE_FABRIC,
        root=str(root),
        experiment="exp",
        config_digest="d",
        output="experiments/exp/segments/0000/attempts/00/records/gate_fabric.json",
        nodes=tuple(NodeRef(name=node, devices=devices) for node in nodes),
        wanted=wanted,
    )
    config, scratch = Config(gate=GateConfig(fabric_timeout_s=timeout_s)), root / "scratch"
    scratch.mkdir(exist_ok=True)
    record = fabric_stage.gate(config, request, scratch, launcher)
    assert all(process.poll() is not None for process in launcher.started)  # nothing outlives the stage
    return record


def test_two_nodes_with_good_links_are_admitted_without_touching_the_spare(tmp_path: Path) -> None:
    launcher = Launcher()

    record = run(tmp_path, launcher, "node-0", "node-1", "node-2")

    assert (record.verdict, record.failure) == (Verdict.ACCEPTED, None)
    assert [node.name for node in record.admitted] == ["node-0", "node-1"]
    assert record.health == {"node-0": Health.HEALTHY, "node-1": Health.HEALTHY}
    names = [check.name for check in record.checks if check.node == "node-1"]
    assert names == ["fabric_arrival", "fabric_pairwise", "fabric_all_reduce", "fabric_all_to_all"]
    assert record.spans[0].part is Part.GATE
    assert from_bytes(GateFabricRecord, to_bytes(record), "here") == record


def test_a_single_node_checks_the_links_between_its_own_devices(tmp_path: Path) -> None:
    launcher = Launcher()

    record = run(tmp_path, launcher, "node-0", wanted=1, devices=2)

    assert [node.name for node in record.admitted] == ["node-0"]
    assert len(launcher.started) == 2


@pytest.mark.parametrize("bad", ["node-0", "node-1"])
def test_a_member_that_never_arrives_is_unknown_and_the_spare_takes_its_place(tmp_path: Path, bad: str) -> None:
    record = run(tmp_path, Launcher(never=bad), "node-0", "node-1", "node-2", timeout_s=15.0)

    good = "node-1" if bad == "node-0" else "node-0"
    assert record.verdict is Verdict.ACCEPTED
    assert [node.name for node in record.admitted] == [good, "node-2"]
    assert record.health == {bad: Health.UNKNOWN, good: Health.HEALTHY, "node-2": Health.HEALTHY}
    assert any("did not arrive within 15 s" in check.detail for check in record.checks if check.node == bad)


def test_a_member_that_is_killed_after_arrival_is_unknown_and_replaced(tmp_path: Path) -> None:
    record = run(tmp_path, Launcher(killed_after_arrival="node-0"), "node-0", "node-1", "node-2")

    assert [node.name for node in record.admitted] == ["node-1", "node-2"]
    assert record.health["node-0"] is Health.UNKNOWN
    assert record.health["node-1"] is Health.HEALTHY


def test_a_member_that_freezes_after_arrival_leaves_too_few_and_its_peer_unblamed(tmp_path: Path) -> None:
    record = run(tmp_path, Launcher(stopped_after_arrival="node-0"), "node-0", "node-1", timeout_s=15.0)

    assert (record.verdict, record.admitted) == (Verdict.REJECTED, ())
    assert record.health == {"node-0": Health.UNKNOWN}
    assert any("fell silent" in check.detail for check in record.checks)
    assert record.failure is not None
    assert record.failure.cause is Cause.NODE_UNHEALTHY
    assert "2 needed, 1 usable of 2" in record.failure.message
    assert "prunella node list" in record.failure.message


def test_too_few_candidates_is_a_verdict_and_starts_nothing(tmp_path: Path) -> None:
    launcher = Launcher()

    record = run(tmp_path, launcher, "node-0")

    assert record.verdict is Verdict.REJECTED
    assert record.failure is not None
    assert "2 needed, 1 usable of 1" in record.failure.message
    assert launcher.started == []


# ------------------------------------------------------------------------------------------------ blame, on reports


def member(rank: int, *steps: StepReport, is_finished: bool = True, absence: str = "") -> Member:
    report = RankReport(rank=rank, node=f"n{rank}", steps=steps, is_finished=is_finished)
    return Member(rank=rank, node=f"n{rank}", arrival_ms=1.0, absence=absence, report=report)


def pairwise(*wrong_from: int) -> StepReport:
    return StepReport(name="pairwise", duration_ms=1.0, wrong=len(wrong_from), wrong_from=wrong_from)


def total(wrong: int) -> StepReport:
    return StepReport(name="all_reduce", duration_ms=1.0, wrong=wrong)


@pytest.mark.parametrize(
    ("members", "health"),
    [
        pytest.param(
            [member(0, pairwise()), member(1, pairwise())], {"n0": Health.HEALTHY, "n1": Health.HEALTHY}, id="all right"
        ),
        pytest.param(
            [member(0, is_finished=False), member(1, absence="fell silent"), member(2, is_finished=False)],
            {"n1": Health.UNKNOWN},
            id="who waited for an absent peer is not blamed",
        ),
        pytest.param(
            [member(0, pairwise(2)), member(1, pairwise(2)), member(2, pairwise())],
            {"n2": Health.UNHEALTHY},
            id="one sender stands out",
        ),
        pytest.param(
            [member(0, pairwise()), member(1, pairwise(0, 2)), member(2, pairwise())],
            {"n1": Health.UNHEALTHY},
            id="one receiver stands out",
        ),
        pytest.param(
            [member(0, pairwise(1)), member(1, pairwise())],
            {"n0": Health.UNKNOWN, "n1": Health.UNKNOWN},
            id="one bad link cannot say which end",
        ),
        pytest.param(
            [member(0, total(0)), member(1, total(9)), member(2, total(0))],
            {"n1": Health.UNHEALTHY},
            id="one wrong sum",
        ),
        pytest.param(
            [member(0, is_finished=False), member(1, is_finished=False)],
            {"n0": Health.UNKNOWN, "n1": Health.UNKNOWN},
            id="all stuck and nobody absent",
        ),
    ],
)
def test_blame_follows_the_evidence(members: list[Member], health: dict[str, Health]) -> None:
    assert conclude(members) == health


def test_one_changed_word_is_counted_and_named() -> None:
    received = payload(1, 0)
    received[WORDS // 2] += 1

    report = compare("pairwise", 1.0, [(1, received, payload(1, 0)), (2, payload(2, 0), payload(2, 0))])

    assert (report.wrong, report.wrong_from) == (1, (1,))


def test_every_pair_exchanges_its_own_words() -> None:
    everything = torch.cat([payload(source, target) for source in range(4) for target in range(4)])

    assert len(torch.unique(everything)) == 16 * WORDS
