"""Two experiments on one fleet, under a live Airflow: they take turns on its nodes, and lateness is told to a webhook."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.live_airflow import LiveAirflow, live_airflow, wait_until_complete
from prunella.ledger import Ledger
from prunella.orchestration.notifier import WEBHOOK
from prunella.orchestration.scheduling import DEADLINE_S, POOL_SLOTS
from prunella.records import Stage, TrainRecord
from unit.orchestration.mailbox import Mailbox

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    made = Mailbox()
    yield made
    made.server.shutdown()


@pytest.fixture
def airflow(tmp_path: Path, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveAirflow]:
    """The default fleet has three nodes. A second is too short for any segment."""
    for name, value in {POOL_SLOTS: "3", DEADLINE_S: "1", WEBHOOK: mailbox.address}.items():
        monkeypatch.setenv(name, value)
    with live_airflow(tmp_path) as airflow:
        yield airflow


def test_two_experiments_train_in_turn_and_both_are_told_to_be_late(airflow: LiveAirflow, mailbox: Mailbox) -> None:
    ledgers = [airflow.open(name, segments=1, schedule="manual") for name in ("first", "second")]

    run_ids = [airflow.trigger(ledger) for ledger in ledgers]
    for ledger in ledgers:
        wait_until_complete(ledger, 600.0)

    (one_began, one_ended), (other_began, other_ended) = map(trained, ledgers)
    assert one_ended <= other_began or other_ended <= one_began
    assert {letter["run_id"] for letter in mailbox.letters} == set(run_ids)
    assert {letter["occasion"] for letter in mailbox.letters} == {"late"}


def trained(ledger: Ledger) -> tuple[int, int]:
    """When training began and ended, in nanoseconds."""
    record = ledger.find_stage_record(TrainRecord, ledger.record_key(0, 0, Stage.TRAINING_SEGMENT))
    assert isinstance(record, TrainRecord)
    return record.started_ns, record.ended_ns
