"""Every nanosecond has one name, and the names add up."""

import random
from itertools import pairwise
from pathlib import Path

import pytest

from prunella.records import Part
from prunella.tracking.history import read_history
from prunella.tracking.time_accounting import Claim, Layer, account, settle
from unit.tracking.campaign import MS, STEP_MS, open_campaign, play, play_crash, play_segment_0, play_segment_1


@pytest.mark.parametrize("seed", range(40))
def test_parts_of_random_claims_add_up_exactly_and_are_never_negative(seed: int) -> None:
    rng = random.Random(seed)
    claims = [
        Claim(
            start_ns=(start := rng.randrange(-200, 1200)),
            end_ns=start + rng.randrange(-20, 300),
            part=rng.choice(list(Part)),
            layer=rng.choice(list(Layer)),
        )
        for _ in range(rng.randrange(0, 60))
    ]

    timeline = settle(claims, start_ns=0, end_ns=1000)

    assert sum(stretch.end_ns - stretch.start_ns for stretch in timeline) == 1000
    assert all(stretch.end_ns > stretch.start_ns for stretch in timeline)
    assert all(left.end_ns == right.start_ns for left, right in pairwise(timeline))
    for stretch in timeline:
        assert stretch.part is _expected(claims, stretch.start_ns)


def _expected(claims: list[Claim], at_ns: int) -> Part:
    there = [claim for claim in claims if claim.start_ns <= at_ns < claim.end_ns]
    order = list(Part)
    best = min(there, key=lambda claim: (claim.layer, order.index(claim.part)), default=None)
    return best.part if best is not None else Part.UNKNOWN


def test_the_campaign_is_accounted_for_to_the_nanosecond(tmp_path: Path) -> None:
    campaign = play(str(tmp_path))

    time = account(read_history(campaign.ledger), now_ns=0)

    assert time.elapsed_ns == campaign.now * MS
    assert sum(time.parts_ns.values()) == time.elapsed_ns
    expected_ms = {
        Part.PRODUCTIVE: 40 * (STEP_MS - 5),
        Part.LOST_PROGRESS: 8 * (STEP_MS - 5) + 45,
        Part.DATA_WAIT: 48 * 2,
        Part.CHECKPOINT_STALL: 48 * 3,
        Part.DATA_PREPARATION: 700,
        Part.GATE: 4 * 350,
        Part.DETECTION: 500,
        Part.TEARDOWN: 120,
        Part.INITIALISATION: 4 * 300,
        Part.LOAD: 4 * 60,
        Part.FIRST_STEP: 4 * 40,
        Part.DECISION: 4 * 15,
        Part.EVALUATION: 2 * 400,
        Part.PAUSED: 5000,
        Part.UNKNOWN: 3 * 25,
    }
    assert {part: time.parts_ns[part] // MS for part in expected_ms} == expected_ms


def test_ettr_leaves_paused_time_out(tmp_path: Path) -> None:
    campaign = play(str(tmp_path))

    time = account(read_history(campaign.ledger), now_ns=0)

    assert time.ettr == pytest.approx(40 * 95 / (campaign.now - 5000))


def test_a_continuous_experiment_waits_for_no_schedule(tmp_path: Path) -> None:
    campaign = play(str(tmp_path), schedule="continuous")

    time = account(read_history(campaign.ledger), now_ns=0)

    assert time.parts_ns[Part.PAUSED] == 0
    assert sum(time.parts_ns.values()) == time.elapsed_ns


def test_an_open_run_is_counted_until_now(tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path))
    play_crash(campaign)
    now_ns = campaign.now_ns + 70 * MS

    time = account(read_history(campaign.ledger), now_ns=now_ns)

    assert time.elapsed_ns == (campaign.now + 70) * MS
    assert sum(time.parts_ns.values()) == time.elapsed_ns


def test_an_attempt_that_vanished_in_training_leaves_unknown_time(tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path))
    campaign.open_run(0)
    campaign.open_attempt(0, 0, None)
    campaign.gate(0, 0)
    campaign.pass_ms(900)
    campaign.open_run(0, run_index=1)

    time = account(read_history(campaign.ledger), now_ns=campaign.now_ns)

    assert time.parts_ns[Part.UNKNOWN] == 900 * MS
    assert sum(time.parts_ns.values()) == time.elapsed_ns


def test_the_account_at_a_close_does_not_change_when_the_campaign_goes_on(tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path))
    play_segment_0(campaign)
    closed_ns = campaign.now_ns
    before = account(read_history(campaign.ledger), now_ns=closed_ns)
    play_segment_1(campaign)

    after = account(read_history(campaign.ledger).until(closed_ns), now_ns=closed_ns)

    assert after == before
