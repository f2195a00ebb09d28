"""Recovery is reported by phase (R11)."""

from pathlib import Path

import pytest

from prunella.errors import Cause
from prunella.records import Action, Outcome
from prunella.tracking.history import read_history
from prunella.tracking.incidents import PHASES, stories
from unit.tracking.campaign import MS, STEP_MS, open_campaign, play, play_crash


def test_every_incident_is_told_once_in_order(tmp_path: Path) -> None:
    campaign = play(str(tmp_path))

    told = stories(read_history(campaign.ledger))

    assert [story.incident.diagnosis.cause for story in told] == [
        Cause.PROCESS_CRASH,
        Cause.NODE_UNHEALTHY,
        Cause.CHECKPOINT_INVALID,
    ]
    assert [story.after_step for story in told] == [13, 13, 20]
    assert [story.culprit for story in told] == ["node-1, rank 1", "node-1", None]


def test_phases_of_a_crash_add_up_to_the_time_until_the_first_new_step(tmp_path: Path) -> None:
    campaign = play(str(tmp_path))
    history = read_history(campaign.ledger)

    crash = stories(history)[0]

    assert crash.recovery_ns is not None
    assert tuple(crash.recovery_ns) == PHASES
    ended_ns = next(step.record.end_ns for step in history.steps if step.attempt == 1 and step.record.step == 14)
    assert sum(crash.recovery_ns.values()) == ended_ns - crash.incident.fault_ns
    assert crash.recovery_ns["detect"] == 500 * MS
    assert crash.recovery_ns["tear_down"] == 120 * MS
    assert crash.recovery_ns["decide"] == 15 * MS
    assert crash.recovery_ns["load"] == 60 * MS
    assert crash.recovery_ns["first_step"] == 440 * MS


def test_a_corrupt_last_checkpoint_is_recovered_when_its_step_is_done_again(tmp_path: Path) -> None:
    campaign = play(str(tmp_path))
    history = read_history(campaign.ledger)

    corrupt = stories(history)[2]

    assert corrupt.recovery_ns is not None
    ended_ns = next(step.record.end_ns for step in history.steps if step.attempt == 2 and step.record.step == 20)
    assert sum(corrupt.recovery_ns.values()) == ended_ns - corrupt.incident.fault_ns


def test_a_node_replaced_inside_the_gate_is_recovered_by_the_same_attempt(tmp_path: Path) -> None:
    campaign = play(str(tmp_path))

    replaced = stories(read_history(campaign.ledger))[1]

    assert replaced.recovery_ns is not None
    assert replaced.recovery_ns["decide"] == 0
    assert all(ns >= 0 for ns in replaced.recovery_ns.values())


def test_an_incident_that_nothing_recovered_from_has_no_phases(tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path))
    play_crash(campaign)

    (crash,) = stories(read_history(campaign.ledger))

    assert crash.recovery_ns is None
    assert crash.recovery_s == {}


@pytest.mark.parametrize("phase", PHASES)
def test_no_phase_is_negative(tmp_path: Path, phase: str) -> None:
    campaign = play(str(tmp_path))

    told = stories(read_history(campaign.ledger))

    assert all(story.recovery_s[phase] >= 0 for story in told)


def test_a_pause_is_no_part_of_a_recovery(tmp_path: Path) -> None:
    campaign = open_campaign(str(tmp_path), schedule="cron:0 3 * * *")
    campaign.open_run(0)
    campaign.open_attempt(0, 0, None)
    campaign.gate(0, 0)
    campaign.train(0, 0, 1, 20)
    last = campaign.validate("0000-00-0003")
    campaign.decide(0, 0, Action.ACCEPT)
    fault_ns, detected_ns = campaign.pass_ms(400)
    lost = campaign.incident(Cause.VANISHED, Action.ACCEPT, fault_ns=fault_ns, detected_ns=detected_ns)
    campaign.close_run(0, Outcome.ACCEPTED, checkpoint=last, attempt=0, incidents=(lost,))
    campaign.pass_ms(86_400_000)
    campaign.open_run(1)
    campaign.open_attempt(1, 0, last)
    campaign.gate(1, 0)
    campaign.train(1, 0, 21, 40)

    (story,) = stories(read_history(campaign.ledger))

    until_loading_ms = 30 + 50 + 20 + 80 + 200 + 150 + 300
    assert story.recovery_ns is not None
    assert [story.recovery_ns[phase] // MS for phase in PHASES] == [400, 0, 0, until_loading_ms, 60, 40 + STEP_MS]
