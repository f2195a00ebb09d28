import signal
from dataclasses import replace

from prunella.errors import Cause
from prunella.records import Failure
from prunella.training_segment.culprit import Blame, RankSeen, blame, rank_exits
from prunella.training_segment.exits import ExitNote
from prunella.training_segment.hang import Hang
from prunella.training_segment.heartbeat import Heartbeat, Phase


def seen(
    rank: int, *, at_ns: int = 50, is_alive: bool = True, note: ExitNote | None = None, exit_code: int | None = None
) -> RankSeen:
    beat = Heartbeat(rank=rank, node=f"node-{rank}", pid=1, process_start=1, step=6, phase=Phase.FORWARD, at_ns=at_ns, beats=9)
    return RankSeen(
        rank=rank, node=f"node-{rank}", heartbeat=beat, note=note, is_alive=is_alive, exit_code=exit_code, state="S"
    )


def note(rank: int, cause: Cause, *, at_ns: int = 60, is_peer_loss: bool = False, culprit: int | None = None) -> ExitNote:
    failure = Failure(cause=cause, message="it broke", rank=culprit if culprit is not None else rank, step=6)
    return ExitNote(
        rank=rank,
        node=f"node-{rank}",
        step=6,
        phase="forward",
        at_ns=at_ns,
        exit_code=1,
        last_step=5,
        failure=failure,
        is_peer_loss=is_peer_loss,
    )


def judge(*ranks: RankSeen, hang: Hang | None = None) -> Blame:
    tails = {"node-0": "Address already in use", "node-1": "No module named 'torch'"}
    return blame(ranks, hang=hang, launched_ns=1, tails=tails)


def silent(rank: int, *, agent_gone_ns: int | None = None) -> RankSeen:
    return replace(seen(rank, is_alive=False), heartbeat=None, agent_gone_ns=agent_gone_ns)


def test_rank_that_died_without_a_word_is_blamed_not_the_peer_that_complained() -> None:
    killed = seen(1, is_alive=False, exit_code=-9, at_ns=40)
    witness = seen(0, is_alive=False, note=note(0, Cause.UNKNOWN, is_peer_loss=True))

    verdict = judge(witness, killed)

    assert (verdict.failure.cause, verdict.failure.rank, verdict.failure.node) == (Cause.PROCESS_CRASH, 1, "node-1")
    assert verdict.failure.evidence["signal"] == signal.SIGKILL
    assert verdict.fault_ns == 40


def test_rank_that_died_first_is_blamed_when_two_did() -> None:
    verdict = judge(seen(0, is_alive=False, at_ns=70), seen(1, is_alive=False, at_ns=40))

    assert verdict.failure.rank == 1


def test_own_account_of_a_rank_beats_a_peer_that_lost_it() -> None:
    verdict = judge(
        seen(0, is_alive=False, note=note(0, Cause.UNKNOWN, at_ns=55, is_peer_loss=True)),
        seen(1, is_alive=False, note=note(1, Cause.DATA_CORRUPT, at_ns=60)),
    )

    assert (verdict.failure.cause, verdict.failure.rank) == (Cause.DATA_CORRUPT, 1)


def test_culprit_named_by_a_failure_all_ranks_share_gets_its_node_and_heartbeat() -> None:
    verdict = judge(
        seen(0, is_alive=False, note=note(0, Cause.NON_FINITE, culprit=1)), seen(1, note=None, at_ns=45, is_alive=True)
    )

    assert (verdict.failure.cause, verdict.failure.rank, verdict.failure.node) == (Cause.NON_FINITE, 1, "node-1")
    assert verdict.fault_ns == 45


def test_lost_connections_without_a_dead_rank_blame_nobody() -> None:
    verdict = judge(
        seen(0, is_alive=False, note=note(0, Cause.UNKNOWN, is_peer_loss=True)),
        seen(1, is_alive=False, note=note(1, Cause.UNKNOWN, is_peer_loss=True)),
    )

    assert (verdict.failure.cause, verdict.failure.rank) == (Cause.UNKNOWN, None)


def test_hang_blames_the_rank_that_stood_still_first() -> None:
    ranks = (seen(0), seen(1, at_ns=33))
    assert ranks[1].heartbeat is not None

    verdict = judge(*ranks, hang=Hang(culprit=ranks[1].heartbeat, silent_s=20.0, limit_s=15.0))

    assert (verdict.failure.cause, verdict.failure.rank, verdict.fault_ns) == (Cause.HANG, 1, 33)


def test_rank_that_never_spoke_is_a_crash_with_the_log_as_evidence() -> None:
    verdict = judge(silent(0))

    assert verdict.failure.cause is Cause.PROCESS_CRASH
    assert verdict.failure.evidence["log_tail"] == "Address already in use"
    assert verdict.fault_ns == 1


def test_node_whose_agent_is_gone_is_blamed_for_the_silence_of_all() -> None:
    verdict = judge(silent(0), silent(1, agent_gone_ns=70))

    assert (verdict.failure.cause, verdict.failure.rank, verdict.failure.node) == (Cause.PROCESS_CRASH, 1, "node-1")
    assert verdict.failure.evidence["log_tail"] == "No module named 'torch'"


def test_node_whose_agent_went_first_is_blamed_when_two_did() -> None:
    verdict = judge(silent(0, agent_gone_ns=80), silent(1, agent_gone_ns=70))

    assert verdict.failure.node == "node-1"


def test_node_that_stays_silent_alone_is_blamed_and_not_the_one_that_waits_for_it() -> None:
    verdict = judge(seen(0), silent(1))

    assert (verdict.failure.rank, verdict.failure.node) == (1, "node-1")


def test_silence_of_all_blames_nobody_while_their_agents_run_and_brings_all_logs() -> None:
    verdict = judge(silent(0), silent(1))

    assert (verdict.failure.cause, verdict.failure.rank, verdict.failure.node) == (Cause.PROCESS_CRASH, None, None)
    assert verdict.failure.evidence["log_tail"] == "node-0: Address already in use\nnode-1: No module named 'torch'"


def test_rank_that_never_spoke_and_never_will_needs_everybody_to_stop() -> None:
    assert silent(1, agent_gone_ns=70).is_failed
    assert not silent(1).is_failed
    assert not replace(seen(1), agent_gone_ns=70).is_lost_at_start


def test_rank_that_ended_by_itself_without_a_word_brings_its_log() -> None:
    verdict = judge(seen(0, is_alive=False, exit_code=1))

    assert verdict.failure.evidence["log_tail"] == "Address already in use"
    assert "signal" not in verdict.failure.evidence


def test_rank_exits_keep_signals_apart_from_exit_codes() -> None:
    killed, stopped, noted = rank_exits(
        (seen(0, is_alive=False, exit_code=-9), seen(1), seen(2, is_alive=False, note=note(2, Cause.UNKNOWN))), launched_ns=1
    )

    assert (killed.signal, killed.exit_code, killed.is_recorded) == (9, None, False)
    assert (stopped.signal, stopped.exit_code, stopped.is_recorded) == (None, None, False)
    assert (noted.signal, noted.exit_code, noted.is_recorded) == (None, 1, True)
