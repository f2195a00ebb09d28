import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from prunella.config import Config, TrainingConfig
from prunella.errors import Fenced
from prunella.ledger import Ledger
from prunella.node_processes import LocalLauncher, NodeProcess, kill_groups, start_on_node
from prunella.records import NodeRef, Stage, StopReason, TrainRequest
from prunella.storage import S3Store
from prunella.training_segment.agents import reported_exit_codes
from prunella.training_segment.heartbeat import Phase, Pulse
from prunella.training_segment.job import is_stop_asked, node_log, rank_nodes
from prunella.training_segment.watch import StopRequest, Watch, token_check

NODES = (NodeRef(name="node-0"), NodeRef(name="node-1"))


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[list[NodeProcess]]:
    """An agent on each node that runs and starts nothing."""
    started: list[NodeProcess] = [start_on_node(node, ["sleep", "60"], log=node_log(tmp_path, node)) for node in NODES]
    yield started
    kill_groups(started)


#: What S3 calls its refusals.
CODES = {403: "AccessDenied", 404: "NoSuchKey", 503: "SlowDown"}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What an S3 server says to one look after the other, as a list to be filled; the last goes on."""
    statuses: list[int] = []

    class Bucket(BaseHTTPRequestHandler):
        status = 0

        def do_HEAD(self) -> None:
            Bucket.status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
            self.say(b"")

        def do_GET(self) -> None:
            """Why the HEAD before it was refused, which has no body to say so in."""
            self.say(f"<Error><Code>{CODES[Bucket.status]}</Code></Error>".encode())

        def say(self, body: bytes) -> None:
            self.send_response(Bucket.status)
            for name, value in {
                "ETag": '"e"',
                "Last-Modified": "Sun, 22 Nov 2026 00:00:00 GMT",
                "Content-Length": len(body),
            }.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "tests")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    yield statuses
    server.shutdown()
    server.server_close()


def request() -> TrainRequest:
    return TrainRequest(
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


def watch(
    scratch: Path,
    agents: list[NodeProcess],
    *,
    grace_s: float = 25.0,
    startup_timeout_s: float = 60.0,
    check_token: Callable[[], None] = lambda: None,
) -> Watch:
    return Watch(
        Config(training=TrainingConfig(grace_s=grace_s, startup_timeout_s=startup_timeout_s, fence_poll_s=0.01)),
        request(),
        agents,
        scratch,
        launcher=LocalLauncher(),
        launched_ns=time.time_ns(),
        check_token=check_token,
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


def watch_bucket(scratch: Path, agents: list[NodeProcess]) -> Watch:
    """Watches ranks that have spoken, for a second after they were asked to stop, with the fence in a bucket."""
    spoken(scratch)
    ledger = Ledger(S3Store("s3://bucket"), "tiny")
    return watch(scratch, agents, grace_s=1.0, check_token=token_check(ledger, request()))


def asked_to_stop(scratch: Path) -> StopRequest:
    stop = StopRequest(scratch)
    stop.ask(StopReason.SIGNAL)
    return stop


def test_looks_that_are_refused_end_no_attempt_and_are_told_once(
    tmp_path: Path, agents: list[NodeProcess], answers: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    answers.append(403)

    watched = watch_bucket(tmp_path, agents).until_over(asked_to_stop(tmp_path))

    assert watched.stopped_by is StopReason.SIGNAL
    assert caplog.text.count("fence_not_seen") == 1
    assert "these credentials may not do that" in caplog.text


def test_each_change_of_what_hides_the_fence_is_told(
    tmp_path: Path, agents: list[NodeProcess], answers: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answers.extend([403, 403, 503, 403, 404])  # a look that sees asks for two objects

    watch_bucket(tmp_path, agents).until_over(asked_to_stop(tmp_path))

    told = [record.message.partition(" ")[0] for record in caplog.records if "fence" in record.message]
    assert told == ["fence_not_seen", "fence_not_seen", "fence_not_seen", "fence_seen_again"]


def test_fence_that_is_seen_after_a_refused_look_ends_the_attempt(
    tmp_path: Path, agents: list[NodeProcess], answers: list[int]
) -> None:
    answers.extend([403, 200])

    with pytest.raises(Fenced, match="lost its token"):
        watch_bucket(tmp_path, agents).until_over(asked_to_stop(tmp_path))


def test_ranks_are_numbered_node_by_node() -> None:
    nodes = (NodeRef(name="a", devices=2), NodeRef(name="b"))

    assert [node.name for node in rank_nodes(nodes)] == ["a", "a", "b"]


def test_signals_are_read_from_the_agents_report(tmp_path: Path) -> None:
    node = NodeRef(name="node-0")
    node_log(tmp_path, node).write_text(
        "E1121 03:10:04 api.py:1003] failed (exitcode: -9) local_rank: 0 (pid: 4242) of binary: /usr/bin/python\n"
    )

    assert reported_exit_codes(tmp_path, (node,)) == {4242: -9}
