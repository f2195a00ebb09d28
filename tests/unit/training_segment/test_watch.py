import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunella.config import Config, TrainingConfig
from prunella.node_processes import LocalLauncher, NodeProcess, kill_groups, start_on_node
from prunella.records import NodeRef, Stage, StopReason, TrainRequest
from prunella.training_segment.agents import reported_exit_codes
from prunella.training_segment.heartbeat import Phase, Pulse
from prunella.training_segment.job import is_stop_asked, node_log, rank_nodes
from prunella.training_segment.watch import StopRequest, Watch

NODES = (NodeRef(name="node-0"), NodeRef(name="node-1"))


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[list[NodeProcess]]:
    """An agent on each node that runs and starts nothing."""
    started: list[NodeProcess] = [start_on_node(node, ["sleep", "60"], log=node_log(tmp_path, node)) for node in NODES]
    yield started
    kill_groups(started)


def watch(scratch: Path, agents: list[NodeProcess], *, grace_s: float = 25.0, startup_timeout_s: float = 60.0) -> Watch:
    request = TrainRequest(
        stage=Stage.TRAINING_SEGMENT,
        root="unused",
        experiment="tiny",
        config_digest="c" * 64,
        output="unused",
        nodes=NODES,
        first_step=1,
        last_step=8,
        total_steps=8,
        dataset="unused",
    )
    return Watch(
        Config(training=TrainingConfig(grace_s=grace_s, startup_timeout_s=startup_timeout_s)),
        request,
        agents,
        scratch,
        launcher=LocalLauncher(),
        launched_ns=time.time_ns(),
        check_token=lambda: None,
    )


def spoken(scratch: Path) -> list[Pulse]:
    """A rank on each node, which is this process, that has said its first word."""
    pulses = [Pulse(scratch, rank=rank, node=node.name) for rank, node in enumerate(NODES)]
    for pulse in pulses:
        pulse.beat(Phase.INITIALISE, step=0)
    return pulses


def test_sigterm_asks_every_rank_to_stop_and_the_first_reason_counts(tmp_path: Path) -> None:
    stop = StopRequest(tmp_path)

    with stop.on_sigterm():
        signal.raise_signal(signal.SIGTERM)
    stop.ask(StopReason.WALL_CLOCK)

    assert is_stop_asked(tmp_path)
    assert stop.reason is StopReason.SIGNAL


def test_sigterm_means_what_it_meant_before_once_training_is_over(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    with StopRequest(tmp_path).on_sigterm():
        assert signal.getsignal(signal.SIGTERM) is not before

    assert signal.getsignal(signal.SIGTERM) is before


def test_signal_counts_more_than_the_clock_because_its_sender_waits(tmp_path: Path) -> None:
    stop = StopRequest(tmp_path)
    stop.ask(StopReason.WALL_CLOCK)
    by_clock_s = stop.asked_s

    stop.ask(StopReason.SIGNAL)

    assert stop.reason is StopReason.SIGNAL
    assert stop.asked_s > by_clock_s


def test_signal_ends_a_start_that_takes_longer_than_the_grace(tmp_path: Path, agents: list[NodeProcess]) -> None:
    spoken(tmp_path)
    stop = StopRequest(tmp_path)
    stop.ask(StopReason.SIGNAL)

    watched = watch(tmp_path, agents, grace_s=0.01).until_over(stop)

    assert watched.stopped_by is StopReason.SIGNAL


def test_clock_lets_ranks_start_for_as_long_as_a_start_may_take(tmp_path: Path, agents: list[NodeProcess]) -> None:
    spoken(tmp_path)
    stop = StopRequest(tmp_path)
    stop.ask(StopReason.WALL_CLOCK)

    watched = watch(tmp_path, agents, grace_s=0.01, startup_timeout_s=0.4).until_over(stop)

    assert watched.stopped_by is StopReason.FAILURE
    assert watched.hang is not None


def test_clock_gives_the_grace_once_a_first_step_has_finished(tmp_path: Path, agents: list[NodeProcess]) -> None:
    for pulse in spoken(tmp_path):
        pulse.last_step_ns = 1_000_000
        pulse.beat(Phase.START, step=2)
    stop = StopRequest(tmp_path)
    stop.ask(StopReason.WALL_CLOCK)

    watched = watch(tmp_path, agents, grace_s=0.01).until_over(stop)

    assert watched.stopped_by is StopReason.WALL_CLOCK


def test_agent_that_is_gone_before_its_ranks_spoke_is_seen_and_no_other(tmp_path: Path, agents: list[NodeProcess]) -> None:
    agents[1].kill_group()

    watched = watch(tmp_path, agents).until_over(StopRequest(tmp_path))

    assert watched.stopped_by is StopReason.FAILURE
    assert [rank.is_lost_at_start for rank in watched.seen] == [False, True]


def test_ranks_are_numbered_node_by_node() -> None:
    nodes = (NodeRef(name="a", devices=2), NodeRef(name="b"))

    assert [node.name for node in rank_nodes(nodes)] == ["a", "a", "b"]


def test_signals_are_read_from_the_agents_report(tmp_path: Path) -> None:
    node = NodeRef(name="node-0")
    node_log(tmp_path, node).write_text(
        "E1121 03:10:04 api.py:1003] failed (exitcode: -9) local_rank: 0 (pid: 4242) of binary: /usr/bin/python\n"
    )

    assert reported_exit_codes(tmp_path, (node,)) == {4242: -9}
