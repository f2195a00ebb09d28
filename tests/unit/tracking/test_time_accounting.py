"""Every nanosecond has one name, and the names add up."""

import random
from itertools import pairwise
from pathlib import Path

import pytest

from prunella.records import Action, Directive, Outcome, Part, StopReason
from prunella.tracking.history import read_history
from prunella.tracking.time_accounting import Claim, Layer, account, settle
from unit.tracking.campaign import MS, STEP_MS, Campaign, open_campaign, play, play_crash, play_segment_0, play_segment_1


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


def paused_ms(campaign: Campaign) -> int:
    time = account(read_history(campaign.ledger), now_ns=campaign.now_ns)
    assert sum(time.parts_ns.values()) == time.elapsed_ns
    return time.parts_ns[Part.PAUSED] // MS


@pytest.mark.parametrize("schedule", ["manual", "cron:0 3 * * *"])
def test_a_command_that_goes_on_by_itself_waits_for_nobody(tmp_path: Path, schedule: str) -> None:
    campaign = open_campaign(str(tmp_path), schedule=schedule)
    play_segment_0(campaign)
    play_segment_1(campaign, is_carried_on=True)

    assert paused_ms(campaign) == 0


@pytest.mark.parametrize(
    ("schedule", "is_carried_on", "action", "expected_ms"),
    [
        ("continuous", False, Action.RETRY_SAME_NODES, 0),
        ("continuous", False, Action.ASK, 400),
        ("continuous", False, Action.STOP, 400),
        ("manual", True, Action.RETRY_SAME_NODES, 0),
        ("manual", False, Action.RETRY_SAME_NODES, 400),
        ("cron:0 3 * * *", True, Action.RETRY_SAME_NODES, 0),
        ("cron:0 3 * * *", False, Action.RETRY_SAME_NODES, 400),
    ],
)
def test_after_a_failed_run_only_what_waited_for_a_schedule_or_a_person_is_paused(
    tmp_path: Path, schedule: str, is_carried_on: bool, action: Action, expected_ms: int
) -> None:
    campaign = open_campaign(str(tmp_path), schedule=schedule)
    play_crash(campaign, action=action)
    campaign.close_run(0, Outcome.FAILED, checkpoint=None, attempt=None)
    campaign.pass_ms(400)
    campaign.open_run(0, run_index=1, is_carried_on=is_carried_on)

    assert paused_ms(campaign) == expected_ms


def test_what_the_next_run_decided_about_the_last_attempt_was_not_waited_for(tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path), schedule="continuous")
    campaign.open_run(0)
    campaign.open_attempt(0, 0, None)
    campaign.close_run(0, Outcome.FAILED, checkpoint=None, attempt=None)
    campaign.pass_ms(400)
    campaign.open_run(0, run_index=1)
    campaign.decide(0, 0, Action.STOP)

    assert paused_ms(campaign) == 0


def test_a_continuous_experiment_is_paused_while_it_is_stopped(tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path), schedule="continuous")
    play_segment_0(campaign)
    campaign.ledger.put_directive(Directive(at_ns=campaign.now_ns, reason="the night", is_stop=True))
    campaign.pass_ms(3000)
    campaign.ledger.put_directive(Directive(at_ns=campaign.now_ns, reason="the morning", is_stop=False))
    campaign.pass_ms(60)
    campaign.open_run(1)

    assert paused_ms(campaign) == 3000


def test_a_complete_experiment_is_paused_until_it_is_extended(tmp_path: Path) -> None:
    campaign = play(str(tmp_path), schedule="continuous")
    campaign.pass_ms(3000)
    campaign.ledger.put_directive(Directive(at_ns=campaign.now_ns, reason="more of it", segments=3))
    campaign.pass_ms(60)
    campaign.open_run(2)

    assert paused_ms(campaign) == 3000


def play_interrupted(campaign: Campaign, *, stopped_by: StopReason = StopReason.SIGNAL) -> None:
    """A run that ends in training, without a close."""
    campaign.open_run(0)
    campaign.open_attempt(0, 0, None)
    campaign.gate(0, 0)
    campaign.train(0, 0, 1, 10, stopped_by=stopped_by)


def test_an_interrupted_run_is_paused_until_the_next_one(tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path))
    play_interrupted(campaign)
    campaign.pass_ms(9000)
    meanwhile = paused_ms(campaign)
    campaign.open_run(0, run_index=1)
    campaign.decide(0, 0, Action.RETRY_SAME_NODES)
    campaign.pass_ms(70)

    assert meanwhile == 9000
    assert paused_ms(campaign) == 9000


def test_an_orchestrator_that_died_pauses_nothing(tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path))
    play_interrupted(campaign, stopped_by=StopReason.END)
    campaign.pass_ms(9000)
    campaign.open_run(0, run_index=1)

    assert paused_ms(campaign) == 0


def test_a_run_that_went_on_after_its_training_was_stopped_was_not_interrupted(tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path))
    play_interrupted(campaign)
    campaign.decide(0, 0, Action.RETRY_SAME_NODES)
    campaign.pass_ms(9000)
    campaign.open_run(0, run_index=1)

    assert paused_ms(campaign) == 0


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
