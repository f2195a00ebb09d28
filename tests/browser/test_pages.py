"""What a person sees: the pages of a live Airflow and of MLflow in a real browser, while two experiments run side by side.

One is started by the form and is `continuous`; the other is started by `prunella trigger`, loses a rank, and is advanced
by cron. Both are run once; the tests look at what came of it.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from browser.webdriver import Browser, open_browser
from e2e.campaign import CONFIGURATION, PRUNELLA, SEGMENTS, STEPS_PER_SEGMENT
from e2e.live_airflow import DAG_ID, LiveAirflow, live_airflow, wait_until_complete
from prunella.ledger import Ledger, open_ledger
from prunella.orchestration import graph, live
from prunella.orchestration.progress import incidents
from prunella.orchestration.publishing import published
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

#: A page of a busy machine may take long to draw. Source: own measurement 2026-11, 80 s with nine jobs on 2 cores.
PATIENCE_S = 240.0
BY_FORM, BY_COMMAND = "by-form", "by-command"
STEPS = SEGMENTS * STEPS_PER_SEGMENT
#: The steps at which a chart has a point, by the name of the run.
Curves = dict[str, list[int]]


@dataclass(frozen=True)
class SideBySide:
    """Two finished experiments, and what their starts said."""

    by_form: Ledger
    by_command: Ledger
    form_run_ids: list[str]
    triggered_run_id: str


@pytest.fixture(scope="module")
def airflow(browser_programs: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveAirflow]:
    with live_airflow(tmp_path_factory.mktemp("pages") / "live", with_mlflow=True) as running:
        yield running


@pytest.fixture(scope="module")
def browser(airflow: LiveAirflow) -> Iterator[Browser]:
    """A wide window, signed in to Airflow, in which a DAG's page opens on its graph."""
    with open_browser(width=2600, height=1400) as window:
        window.open(airflow.settings.airflow_url)
        window.fill("input[name=username]", live.USER)
        window.fill("input[name=password]", live.password(airflow.settings))
        window.click("button[type=submit]")
        window.wait_for_text("Pool Slots", timeout_s=PATIENCE_S)
        window.script("localStorage.setItem('default_dag_view', '\"graph\"')")
        yield window


@pytest.fixture(scope="module")
def side_by_side(airflow: LiveAirflow, browser: Browser) -> SideBySide:
    configuration = airflow.settings.folder / "experiment.toml"
    configuration.write_text(CONFIGURATION)
    before = set(airflow.api.run_states(DAG_ID))
    experiment = {"1. Experiment": {"experiment": BY_FORM}}
    what = {"2. What to train": {"config_file": str(configuration), "seed": "11", "schedule": "continuous"}}
    fill_in_the_form(airflow, browser, experiment | what)
    form_run_ids = new_runs(airflow, before)
    triggered = trigger_by_command(airflow, configuration)
    root = airflow.settings.root
    ledgers = [open_when_there(root, name) for name in (BY_FORM, BY_COMMAND)]
    for ledger in ledgers:
        wait_until_complete(ledger, 900.0)
    return SideBySide(*ledgers, form_run_ids=form_run_ids, triggered_run_id=triggered)


def fill_in_the_form(airflow: LiveAirflow, browser: Browser, sections: dict[str, dict[str, str]]) -> None:
    """Open the trigger form, fill in the fields of each section, and press its button. One section is open at a time."""
    browser.open(f"{airflow.settings.airflow_url}/dags/{DAG_ID}")
    browser.wait_for('button[aria-label="Trigger Dag"]', timeout_s=PATIENCE_S)
    browser.click('button[aria-label="Trigger Dag"]')
    browser.wait_for("[role=dialog] input[name=element_experiment]", timeout_s=PATIENCE_S)
    for section, fields in sections.items():
        press(browser, section)
        for name, value in fields.items():
            field = f"input[name=element_{name}]"
            wait_until_still(browser, field)
            browser.fill(field, value)
            assert browser.script("return document.querySelector(arguments[0]).value", field) == value
    press(browser, "Trigger")


def press(browser: Browser, label: str) -> None:
    """Click the button of the open dialog whose text starts with `label`, once it is enabled."""
    find = """const found = [...document.querySelectorAll('[role=dialog] button')]
        .filter(one => one.innerText.trim().startsWith(arguments[0]) && !one.disabled);
        document.querySelectorAll('[data-pressed]').forEach(one => one.removeAttribute('data-pressed'));
        found.forEach(one => one.setAttribute('data-pressed', '')); return found.length"""
    wait_until(lambda: browser.script(find, label) == 1)
    wait_until_still(browser, "[data-pressed]")
    browser.click("[data-pressed]")


def wait_until_still(browser: Browser, css: str) -> None:
    """Wait until an element is shown and has stopped moving: sections unfold slowly."""
    top = "const r = document.querySelector(arguments[0]).getBoundingClientRect(); return r.height ? r.top : null"

    def stands_still() -> bool:
        first = browser.script(top, css)
        time.sleep(0.3)
        return first is not None and browser.script(top, css) == first

    wait_until(stands_still)


def new_runs(airflow: LiveAirflow, before: set[str]) -> list[str]:
    """Ids of the DAG runs that came since; waits for the first."""
    wait_until(lambda: set(airflow.api.run_states(DAG_ID)) > before)
    return sorted(set(airflow.api.run_states(DAG_ID)) - before)


def trigger_by_command(airflow: LiveAirflow, configuration: Path) -> str:
    """`prunella trigger` with every parameter on the command line; returns the run id it printed."""
    where = ["--root", airflow.settings.root, "--airflow", airflow.settings.airflow_url]
    what = ["--experiment", BY_COMMAND, "--config", str(configuration), "--schedule", "cron:* * * * *"]
    done = subprocess.run(
        [str(PRUNELLA), "trigger", *where, *what, "--fault", "kill:rank=0,step=5"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PRUNELLA_AIRFLOW_PASSWORD": live.password(airflow.settings)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def open_when_there(root: str, name: str) -> Ledger:
    """The ledger of an experiment that a DAG run is about to open."""
    wait_until(lambda: (Path(root) / "experiments" / name / "experiment.json").exists())
    return open_ledger(root, name)


# ------------------------------------------------------------------------------------------------ Airflow


def test_the_form_starts_a_run_with_its_parameters(side_by_side: SideBySide) -> None:
    ledger = side_by_side.by_form

    config = ledger.config()
    assert [run.run_id for run in ledger.runs(0)] == side_by_side.form_run_ids
    assert (config.seed, config.schedule, config.segments) == (11, "continuous", SEGMENTS)


def test_the_trigger_command_starts_an_experiment_that_cron_then_advances(
    airflow: LiveAirflow, side_by_side: SideBySide
) -> None:
    ledger = side_by_side.by_command

    states = airflow.api.run_states(DAG_ID)
    assert side_by_side.triggered_run_id == f"{BY_COMMAND}__seg-0000__r0"
    assert [run.run_id for run in ledger.runs(1)] == [f"{BY_COMMAND}__seg-0001__r0"]
    assert states[f"{BY_COMMAND}__seg-0001__r0"] in ("success", "running")
    assert airflow.api.task_states(DAG_ID, side_by_side.triggered_run_id)[graph.Step.CONTINUE_EXPERIMENT] == "skipped"


def test_a_continuous_and_a_cron_experiment_run_side_by_side(side_by_side: SideBySide) -> None:
    def spell(ledger: Ledger) -> tuple[int, int]:
        last = ledger.accepted(SEGMENTS - 1)
        assert last is not None
        return ledger.experiment().opened_ns, last.closed_ns

    (opened_a, closed_a), (opened_b, closed_b) = spell(side_by_side.by_form), spell(side_by_side.by_command)

    assert max(opened_a, opened_b) < min(closed_a, closed_b)
    assert [entry.diagnosis.cause for _, _, entry in incidents(side_by_side.by_form)] == []
    assert [entry.diagnosis.cause for _, _, entry in incidents(side_by_side.by_command)] == ["process_crash"]


def test_the_graph_shows_every_branch_of_every_verdict_and_names_it(
    airflow: LiveAirflow, browser: Browser, side_by_side: SideBySide
) -> None:
    browser.open(f"{airflow.settings.airflow_url}/dags/{DAG_ID}/runs/{side_by_side.triggered_run_id}")
    browser.wait_for(".react-flow__node", timeout_s=PATIENCE_S)
    browser.click('button[aria-label="Expand all task groups"]')
    expected_nodes = sorted(branch for rung in range(graph.RUNGS) for branch in graph.branches(rung))

    def branches() -> list[str]:
        names = browser.script(
            "return [...document.querySelectorAll('.react-flow__node')].map(one => one.innerText.split('\\n')[0].trim())"
        )
        return sorted(name for name in names if name in set(expected_nodes))

    wait_until(lambda: branches() == expected_nodes)

    labels = browser.script(
        "return [...document.querySelectorAll('.react-flow__edge')].map(one => one.textContent.trim()).filter(Boolean)"
    )
    assert sorted(labels) == sorted(name.replace("_", " ") for name in expected_nodes)


# ------------------------------------------------------------------------------------------------ MLflow


def test_mlflows_comparison_shows_two_whole_loss_curves_with_incidents_and_accuracy(
    airflow: LiveAirflow, browser: Browser, side_by_side: SideBySide
) -> None:
    wait_until(lambda: all(published(ledger) for ledger in (side_by_side.by_form, side_by_side.by_command)))
    where = published(side_by_side.by_form)
    assert where is not None
    page = f"{airflow.settings.mlflow_url}/#/experiments/{where.experiment_id}/runs?compareRunsMode=CHART"

    loss = wait_for_curves(browser, page, "train/loss", has_points(STEPS))
    lost = wait_for_curves(browser, page, "heal/incidents", bool, runs=1)
    heldout = wait_for_curves(
        browser, page, "eval/heldout_loss_nats", lambda found: all(len(x) == SEGMENTS for x in found.values())
    )

    assert loss == {name: list(range(1, STEPS + 1)) for name in (BY_FORM, BY_COMMAND)}
    assert list(lost) == [BY_COMMAND]
    assert heldout == {name: [STEPS_PER_SEGMENT, STEPS] for name in (BY_FORM, BY_COMMAND)}


def has_points(count: int) -> Callable[[Curves], bool]:
    """Whether every curve has so many points."""
    return lambda curves: all(len(steps) == count for steps in curves.values())


def wait_for_curves(browser: Browser, page: str, metric: str, is_whole: Callable[[Curves], bool], *, runs: int = 2) -> Curves:
    """The steps of each run's curve in the chart of a metric. The last close is mirrored a moment after it is written."""
    read = """return [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => (plot.data || [])
        .map(trace => [trace.name || (trace.uuid || ''), Array.from(trace.x || [])]))"""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        browser.open("about:blank")
        browser.open(page)
        browser.wait_for_text(BY_COMMAND, timeout_s=PATIENCE_S)
        browser.script("document.querySelector('button[data-component-id=\"mlflow.assistant.chat_panel.close\"]')?.click()")
        browser.fill('input[placeholder="Search metric charts"]', f"^{metric}$")
        time.sleep(5.0)
        found = dict(browser.script(read))
        if len(found) == runs and is_whole(found):
            return found
        assert time.monotonic() < deadline, f"{metric}: {found}"
