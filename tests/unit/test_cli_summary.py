"""The tables at the end of a run are whole on a terminal of 80 columns."""

from io import StringIO

import pytest
from rich.console import Console

from prunella.cli_summary import show_summary
from prunella.errors import Cause
from prunella.records import Action


def document(**changes):
    whole = {
        "state": "complete",
        "segments": 3,
        "attempts": 5,
        "restarts": 0,
        "steps": 120,
        "tokens": 245760,
        "first_loss_nats": 7.5,
        "final_loss_nats": 5.25,
        "ettr": 0.5,
        "incidents": [],
        "checkpoints": {"verified": 5, "rejected": 1},
        "accuracy": {"prunella_order": {"acc": 0.86, "n": 100, "ci95": [0.779, 0.915], "chance": 0.25}},
        "time_s": {"elapsed": 10.0, "productive": 5.0, "paused": 0.0},
    }
    return whole | changes


def shown(found):
    text = StringIO()
    show_summary(found, Console(file=text, width=80))
    return text.getvalue()


def incident(cause, decision):
    recovery = {"detect": 0.5, "first_step": 1.25}
    return {"cause": cause, "culprit": "node-1, rank 1", "decision": decision, "lost_steps": 6, "recovery_s": recovery}


@pytest.mark.parametrize("cause", list(Cause))
@pytest.mark.parametrize("decision", list(Action))
def test_cause_culprit_and_decision_of_an_incident_are_never_cut(cause, decision):
    text = shown(document(incidents=[incident(cause.value, decision.value)]))

    cells = [cell.strip() for line in text.splitlines() for cell in line.split("│")]
    assert {cause.value, decision.value, "6", "1.8"} <= set(cells)
    assert "node-1, rank 1" in " ".join(cells)


def test_an_incident_nothing_recovered_from_has_no_recovery_time():
    text = shown(document(incidents=[incident("hang", "stop") | {"recovery_s": {}}]))

    cells = [cell.strip() for line in text.splitlines() for cell in line.split("│")]
    assert "none" in cells
    assert "0.0" not in cells


def test_accuracy_stands_with_its_interval_its_chance_and_its_count():
    text = shown(document())

    line = next(line for line in text.splitlines() if "prunella_order" in line)
    assert [cell.strip() for cell in line.split("│")[1:-1]] == ["prunella_order", "0.860", "0.779 to 0.915", "0.250", "100"]


def test_checkpoints_are_counted_and_parts_that_took_no_time_left_out():
    text = shown(document())

    assert "5 verified, 1 rejected" in text
    assert "50.0" in text
    assert "paused" not in text


def test_an_experiment_without_incidents_or_evaluations_has_its_tables_too():
    text = shown(document(incidents=[], accuracy={}))

    assert "complete" in text
