"""What the fold of a ledger promises."""

from pathlib import Path

import pytest

from prunella.errors import DigestMismatch
from prunella.records import Outcome
from prunella.tracking.history import read_history
from unit.tracking.campaign import Campaign, open_campaign, play, play_crash, play_segment_0


def test_every_step_is_kept_exactly_once(tmp_path: Path) -> None:
    campaign = play(str(tmp_path))

    history = read_history(campaign.ledger)

    assert [record.step for record in history.kept_steps] == list(range(1, 41))
    assert len(history.steps) == 13 + 10 + 5 + 20


def test_steps_beyond_the_next_resume_point_are_superseded(tmp_path: Path) -> None:
    campaign = play(str(tmp_path))

    history = read_history(campaign.ledger)

    superseded = [[step.record.step for step in attempt.steps if not step.is_kept] for attempt in history.segments[0].attempts]
    assert superseded == [[11, 12, 13], [16, 17, 18, 19, 20], []]


def test_a_later_roll_back_supersedes_steps_of_all_attempts_before_it(tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path))
    play_crash(campaign)
    early = campaign.validate("0000-00-0000")
    late = campaign.validate("0000-00-0001")
    campaign.open_attempt(0, 1, late)
    campaign.train(0, 1, 11, 15)
    campaign.open_attempt(0, 2, early)
    campaign.train(0, 2, 6, 10)

    history = read_history(campaign.ledger)

    kept = [(step.attempt, step.record.step) for step in history.steps if step.is_kept]
    assert kept == [(0, step) for step in range(1, 6)] + [(2, step) for step in range(6, 11)]


def test_the_newest_attempt_keeps_what_its_last_candidate_holds(tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path))
    play_crash(campaign)

    history = read_history(campaign.ledger)

    assert [record.step for record in history.kept_steps] == list(range(1, 11))


def test_absent_records_are_none_and_an_open_run_has_no_close(tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path))
    campaign.open_run(0)
    campaign.open_attempt(0, 0, None)

    attempt = read_history(campaign.ledger).attempts[0]

    assert attempt.training is None
    assert attempt.decision is None
    assert attempt.gate_nodes == ()
    assert read_history(campaign.ledger).runs[0][1] is None


def test_gate_records_are_found_for_every_node(tmp_path: Path) -> None:
    campaign = play(str(tmp_path))

    history = read_history(campaign.ledger)

    names = [record.node for record in history.attempts[1].gate_nodes if hasattr(record, "node")]
    assert names == ["node-0", "node-1", "node-2"]


def test_a_damaged_chunk_of_step_records_is_refused(tmp_path: Path) -> None:
    campaign = play(str(tmp_path))
    chunk = next(tmp_path.rglob("metrics/000001-000005.jsonl"))
    chunk.write_bytes(chunk.read_bytes().replace(b"2048", b"2049", 1))

    with pytest.raises(DigestMismatch, match=r"000001-000005\.jsonl"):
        read_history(campaign.ledger)


def test_until_shows_what_was_known_at_a_close(tmp_path: Path) -> None:
    campaign: Campaign = open_campaign(str(tmp_path))
    play_segment_0(campaign)
    closed_ns = campaign.now_ns
    campaign.pass_ms(10)
    campaign.open_run(1)
    campaign.close_run(1, Outcome.STOPPED, checkpoint=None, attempt=None)

    seen = read_history(campaign.ledger).until(closed_ns)

    assert [run.segment for run, _ in seen.runs] == [0]
    assert len(seen.attempts) == 3
