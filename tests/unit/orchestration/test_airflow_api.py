"""The door to a running Airflow: what it does when Airflow stumbles, refuses or is not there."""

from collections.abc import Iterator

import pytest

from prunella.errors import PrunellaError
from prunella.orchestration import airflow_api
from prunella.orchestration.airflow_api import AirflowApi, AirflowAway
from unit.orchestration.airflow_door import HANGS_UP, Stumbling, stumbling_airflow


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stumbling]:
    monkeypatch.setattr(airflow_api, "_STUMBLE_S", 0.01)
    with stumbling_airflow() as server:
        yield server


def api_of(airflow: Stumbling) -> AirflowApi:
    return AirflowApi(airflow.address, "admin", "secret")


def start(airflow: Stumbling, run_id: str | None) -> str:
    return api_of(airflow).trigger("pretrain_segment", conf={}, run_id=run_id)


def test_a_run_with_an_id_is_asked_for_again_while_airflow_stumbles(airflow: Stumbling) -> None:
    airflow.statuses = [500, 503, 200]

    assert start(airflow, "demo__seg-0000__r0") == "demo__seg-0000__r0"
    assert airflow.asked == 3


def test_a_run_that_was_started_before_airflow_stumbled_is_started(airflow: Stumbling) -> None:
    airflow.statuses = [500, 409]

    assert start(airflow, "demo__seg-0000__r0") == "demo__seg-0000__r0"


def test_an_airflow_that_never_rises_is_one_error(airflow: Stumbling) -> None:
    airflow.statuses = [500]

    with pytest.raises(AirflowAway, match="found: 500 "):
        start(airflow, "demo__seg-0000__r0")
    assert airflow.asked == 4


def test_a_run_whose_answer_was_lost_is_asked_for_again(airflow: Stumbling) -> None:
    airflow.statuses = [HANGS_UP, 409]

    assert start(airflow, "demo__seg-0000__r0") == "demo__seg-0000__r0"


def test_a_run_that_is_there_already_is_said_with_what_to_do(airflow: Stumbling) -> None:
    airflow.statuses = [409]

    with pytest.raises(PrunellaError, match=r"has a run demo__seg-0000__r0 of pretrain_segment already .*clear it there"):
        start(airflow, "demo__seg-0000__r0")


@pytest.mark.parametrize(("status", "run_id"), [(500, None), (409, "demo__seg-0000__r0")])
def test_a_run_that_might_start_twice_and_a_plain_refusal_are_not_asked_for_again(
    airflow: Stumbling, status: int, run_id: str | None
) -> None:
    airflow.statuses = [status]

    with pytest.raises(PrunellaError, match=str(status)):
        start(airflow, run_id)
    assert airflow.asked == 1


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "127.0.0.1:8080", "localhost:8080", "http://127.0.0.1:port"])
def test_an_address_without_an_airflow_is_one_clear_error(address: str) -> None:
    with pytest.raises(AirflowAway, match=rf"expected an Airflow that answers at {address}, found: .*HOST:PORT"):
        AirflowApi(address, "admin", "secret").log_in()


@pytest.mark.parametrize("says", [b"<html>", b"[]", b"{}", b"\xff"])
def test_somebody_else_at_the_address_is_one_clear_error(airflow: Stumbling, says: bytes) -> None:
    airflow.says = says

    with pytest.raises(AirflowAway, match="found: an answer without 'access_token'"):
        api_of(airflow).log_in()


@pytest.mark.parametrize("status", [500, HANGS_UP])
def test_states_that_airflow_stumbles_over_are_its_absence_and_a_refusal_is_none(airflow: Stumbling, status: int) -> None:
    airflow.statuses = [status, 403]

    with pytest.raises(AirflowAway):
        api_of(airflow).run_states("pretrain_segment")
    with pytest.raises(PrunellaError, match=r"said 403 .*refusing to list the runs of pretrain_segment") as refused:
        api_of(airflow).run_states("pretrain_segment")
    assert not isinstance(refused.value, AirflowAway)
