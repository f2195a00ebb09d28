import signal
from pathlib import Path

from prunella.records import NodeRef, StopReason
from prunella.training_segment.agents import reported_exit_codes
from prunella.training_segment.job import is_stop_asked, node_log, rank_nodes
from prunella.training_segment.watch import StopRequest


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


def test_ranks_are_numbered_node_by_node() -> None:
    nodes = (NodeRef(name="a", devices=2), NodeRef(name="b"))

    assert [node.name for node in rank_nodes(nodes)] == ["a", "a", "b"]


def test_signals_are_read_from_the_agents_report(tmp_path: Path) -> None:
    node = NodeRef(name="node-0")
    node_log(tmp_path, node).write_text(
        "E1121 03:10:04 api.py:1003] failed (exitcode: -9) local_rank: 0 (pid: 4242) of binary: /usr/bin/python\n"
    )

    assert reported_exit_codes(tmp_path, (node,)) == {4242: -9}
