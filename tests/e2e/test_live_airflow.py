"""A real Airflow: it schedules segments by itself, heals a killed rank, mirrors to MLflow, and asks a person."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from e2e.live_airflow import DAG_ID, LiveAirflow, live_airflow, wait_until_complete
from prunella.errors import PrunellaError
from prunella.fleet.lifecycle import Fleet, Owner
from prunella.orchestration.claim import next_segment
from prunella.orchestration.notifier import WEBHOOK
from prunella.orchestration.progress import incidents
from prunella.orchestration.publishing import published
from unit.orchestration.mailbox import Mailbox
from waiting import wait_until

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def mailbox() -> Iterator[Mailbox]:
    made = Mailbox()
    yield made
    made.server.shutdown()


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory, mailbox: Mailbox) -> Iterator[LiveAirflow]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(WEBHOOK, mailbox.address)
        with live_airflow(tmp_path_factory.mktemp("live"), with_mlflow=True) as airflow:
            yield airflow


def test_continuous_experiment_runs_to_its_end_by_itself_and_heals_a_killed_rank(airflow: LiveAirflow) -> None:
    ledger = airflow.open("smoke", segments=2, schedule="continuous", faults=("kill:rank=0,step=5",))

    airflow.trigger(ledger)
    wait_until_complete(ledger, 600.0)

    states = airflow.api.task_states(DAG_ID, "smoke__seg-0000__r0")
    assert next_segment(ledger) is None
    assert [incident.diagnosis.cause for _, _, incident in incidents(ledger)] == ["process_crash"]
    assert states["attempt_0.retry_same_nodes"] == "success"
    assert states["attempt_0.replace_node"] == "skipped"
    assert states["attempt_1.accept"] == "success"
    assert "smoke__seg-0001__r0" in airflow.api.run_states(DAG_ID)
    assert wait_for(lambda: published(ledger) is not None)


def test_pages_listen_on_this_machine_only(airflow: LiveAirflow) -> None:
    wait_until(lambda: {"api-server", "mlflow"} <= addresses(airflow).keys(), "both have pages")

    listening = addresses(airflow)

    assert set().union(*listening.values()) == {"127.0.0.1"}, listening


def addresses(airflow: LiveAirflow) -> dict[str, set[str]]:
    """Where the services listen that do, with all their processes, by name."""
    found = {name: listens_on(pid) for name, pid in airflow.supervisor.pids.items()}
    return {name: listening for name, listening in found.items() if listening}


def listens_on(pid: int) -> set[str]:
    """The addresses that a process and its descendants listen on; none of those that have ended since they were listed."""
    found = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        service = psutil.Process(pid)
        for process in (service, *service.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                sockets = process.net_connections("inet")
                found |= {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
    return found


@pytest.mark.slow
def test_person_who_repaired_a_node_answers_and_the_next_attempt_goes_on(
    airflow: LiveAirflow, mailbox: Mailbox, tmp_path: Path
) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("nodes:\n  - name: ward-0\n  - name: ward-1\n")
    faults = ("bad-node:node=ward-1,segment=0",)
    ledger = airflow.open("asked", f'fleet="{fleet}"', segments=1, schedule="manual", faults=faults)

    run_id = airflow.trigger(ledger)
    assert wait_for(lambda: airflow.api.task_states(DAG_ID, run_id)["attempt_0.ask"] == "awaiting_input", 240.0)
    told = {letter["occasion"] for letter in mailbox.letters if letter["run_id"] == run_id}
    Fleet(ledger.store).uncordon("ward-1", Owner.OPERATOR, "board replaced")
    assert wait_for(lambda: is_answered(airflow, run_id, "Try again"))
    wait_until_complete(ledger, 300.0)

    assert wait_for(lambda: airflow.api.run_states(DAG_ID)[run_id] == "success")
    assert told == {"asked"}
    assert [str(incident.action) for _, _, incident in incidents(ledger)] == ["ask", "replace_node"]


def is_answered(airflow: LiveAirflow, run_id: str, option: str) -> bool:
    """Answer while the question stands; whether an answer was taken.

    Airflow 3.3.2 forgets an answer that is faster than its scheduler, which then asks again: no person is, a test may be.
    """
    state = airflow.api.task_states(DAG_ID, run_id)["attempt_0.ask"]
    if state == "awaiting_input":
        try:
            airflow.api.answer(DAG_ID, run_id, "attempt_0.ask", option)
        except PrunellaError as error:
            if " 409 " not in str(error):  # it has the answer, and is about to take it
                raise
    return state == "success"


def wait_for(is_so: object, timeout_s: float = 60.0) -> bool:
    """Whether it became so in time."""
    assert callable(is_so)
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(1.0)
    return True
