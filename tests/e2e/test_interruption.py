"""The command is interrupted, killed, stopped, doubled, extended: the same command goes on, and nothing is lost."""

import os
import shutil
import signal
import subprocess

import psutil
import pytest

from e2e.campaign import (
    IN_ONE_SEGMENT,
    INTERVAL_STEPS,
    SEGMENTS,
    STEPS_PER_SEGMENT,
    Campaign,
    assert_complete,
    processes_of,
    wait_for,
    wait_for_ranks,
)
from waiting import PATIENCE_S

FIRST_CANDIDATE = "experiments/experiment/checkpoints/0000-00-0000/manifest.json"
SECOND_TRAINING = "experiments/experiment/segments/0000/attempts/01/requests/training_segment.json"


@pytest.mark.slow
def test_a_root_that_was_deleted_is_used_again_as_if_it_were_new(campaign: Campaign, unbroken: Campaign) -> None:
    command = campaign.start(*IN_ONE_SEGMENT)
    wait_for(campaign.root / FIRST_CANDIDATE, command)
    kill_everything(campaign, command)
    shutil.rmtree(campaign.root)

    done = campaign.run(*IN_ONE_SEGMENT)

    summary = assert_complete(done, campaign)
    assert summary["incidents"] == []
    assert campaign.digest() == unbroken.digest()


@pytest.mark.slow
def test_every_process_and_then_the_command_alone_killed_in_training_go_on_with_the_unbroken_digest(
    campaign: Campaign, unbroken: Campaign
) -> None:
    command = campaign.start(*IN_ONE_SEGMENT)
    wait_for(campaign.root / FIRST_CANDIDATE, command)
    kill_everything(campaign, command)
    after_all = campaign.start(*IN_ONE_SEGMENT)
    wait_for(campaign.root / SECOND_TRAINING, after_all)
    os.killpg(after_all.pid, signal.SIGKILL)
    after_all.wait()

    done = campaign.run(*IN_ONE_SEGMENT)

    summary = assert_complete(done, campaign)
    assert {incident["cause"] for incident in summary["incidents"]} <= {"vanished"}
    assert campaign.digest() == unbroken.digest()


@pytest.mark.slow
def test_interrupted_command_saves_says_how_to_go_on_and_does(campaign: Campaign, unbroken: Campaign) -> None:
    options = (*IN_ONE_SEGMENT, "--set", "checkpoint.interval_steps=5")
    for attempt, number in enumerate((signal.SIGINT, signal.SIGTERM)):
        command = campaign.start(*options)
        wait_for_ranks(campaign, command, attempt)
        command.send_signal(number)
        code = command.wait(120.0)
        log = (campaign.folder / "run.log").read_text()

        assert code == 1
        assert log.splitlines()[-1].startswith("prunella: interrupted; not complete: the same command goes on")
        assert "Traceback" not in log
        assert processes_of(campaign) == []

    done = campaign.run(*options)

    assert done.returncode == 0, done.stderr[-4000:]
    assert campaign.summary()["state"] == "complete"
    assert campaign.digest() == unbroken.digest()


@pytest.mark.slow
def test_stopped_experiment_rests_until_it_is_resumed(campaign: Campaign, unbroken: Campaign) -> None:
    command = campaign.start()
    wait_for(campaign.root / FIRST_CANDIDATE, command)
    stop = campaign.prunella("stop", "--reason", "the power is needed elsewhere")
    code = command.wait(PATIENCE_S)
    rested = campaign.summary()
    refused = campaign.run()

    assert stop.returncode == 0, stop.stderr
    assert code == 1
    assert rested["state"] == "stopped"
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1] == "prunella: stopped; `prunella resume` takes the stop back"

    campaign.prunella("resume")
    done = campaign.run()

    summary = assert_complete(done, campaign)
    assert all(incident["lost_steps"] <= INTERVAL_STEPS for incident in summary["incidents"])
    assert campaign.digest() == unbroken.digest()


@pytest.mark.slow
def test_complete_experiment_is_extended_and_trains_the_new_segment_only(campaign: Campaign, unbroken: Campaign) -> None:
    campaign.take_over(unbroken)
    before = unbroken.digest()

    shorter = campaign.prunella("extend", "--segments", "1")
    longer = campaign.prunella("extend", "--segments", str(SEGMENTS + 1))
    unfinished = campaign.summary()
    done = campaign.run()

    assert shorter.returncode == 2
    assert shorter.stderr.strip() == f"prunella: --segments 1: the experiment has {SEGMENTS}; it can only be extended"
    assert longer.returncode == 0, longer.stderr
    assert unfinished["steps"] == SEGMENTS * STEPS_PER_SEGMENT
    assert done.returncode == 0, done.stderr[-4000:]
    summary = campaign.summary()
    assert (summary["state"], summary["steps"]) == ("complete", (SEGMENTS + 1) * STEPS_PER_SEGMENT)
    assert summary["attempts"] == SEGMENTS + 1
    assert campaign.digest("--step", str(SEGMENTS * STEPS_PER_SEGMENT)) == before


@pytest.mark.slow
def test_two_commands_at_once_end_as_one(campaign: Campaign, unbroken: Campaign) -> None:
    first = campaign.start(*IN_ONE_SEGMENT)
    wait_for(campaign.root / "experiments/experiment/segments/0000/attempts/00/opened.json", first)
    second = campaign.start(*IN_ONE_SEGMENT)
    codes = (first.wait(PATIENCE_S), second.wait(PATIENCE_S))

    assert 0 in codes, (campaign.folder / "run.log").read_text()[-6000:]
    done = campaign.run(*IN_ONE_SEGMENT)
    summary = assert_complete(done, campaign)
    assert summary["tokens"] == unbroken.summary()["tokens"]
    assert campaign.digest() == unbroken.digest()


# ------------------------------------------------------------------------------------------------ how


def kill_everything(campaign: Campaign, command: subprocess.Popen[bytes]) -> None:
    """SIGKILL the command, its stages and their ranks, as a machine that loses power does."""
    command.kill()
    command.wait()
    while alive := processes_of(campaign):
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=5.0)
