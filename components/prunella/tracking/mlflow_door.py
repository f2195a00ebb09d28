"""The door to MLflow: a client whose patience is bounded, and one error for whatever goes wrong behind it.

Nothing here knows what is mirrored. It trusts no answer to be quick, and never shows a password.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from prunella.errors import TrackingUnavailable
from prunella.startup import heavy_imports

#: One HTTP request may take this long, and is tried once more. Source: own choice 2026-11, a healthy server needs far less.
_REQUEST_TIMEOUT_S = 5
_REQUEST_RETRIES = 1
_RETRIES_VARIABLE = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_BOUNDS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_REQUEST_TIMEOUT_S),
    _RETRIES_VARIABLE: str(_REQUEST_RETRIES),
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
#: `mlflow.set_tracking_uri` leaves the address behind in these, for whatever this process starts afterwards.
_ADDRESSES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
#: Where MLflow's client finds who it is. Never in a setting: configurations are recorded for ever.
_CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


@dataclass(kw_only=True, slots=True)
class Door:
    """An open door: the client, the MLflow experiment that is written to, and what one pass has seen and done so far."""

    uri: str
    client: Any
    deadline_s: float
    experiment_id: str = ""
    points_added: int = 0
    _runs: dict[str, Any] = field(default_factory=dict)

    def run(self, run_id: str) -> Any:
        """A run as this pass first saw it, with the tags set since: nobody else writes to it, and a look is a request."""
        if run_id not in self._runs:
            self._runs[run_id] = self.client.get_run(run_id)
        return self._runs[run_id]

    def saw(self, run: Any) -> str:
        """Remembers a run that an answer held; returns its id."""
        self._runs[run.info.run_id] = run
        return str(run.info.run_id)

    def check_deadline(self) -> None:
        """Raises TrackingUnavailable when the time of this pass is used up."""
        if time.monotonic() > self.deadline_s:
            raise TrackingUnavailable(
                f"MLflow at {without_password(self.uri)} is too slow: the time for mirroring is used up; "
                "the next close goes on from here"
            )


@contextmanager
def opened(uri: str, *, timeout_s: float) -> Iterator[Door]:
    """The door to `uri`, for `timeout_s`.

    Raises:
        TrackingUnavailable: whatever MLflow raises inside.
    """
    with _environment(_BOUNDS | dict.fromkeys(_ADDRESSES, uri)), _one_error(uri):
        yield Door(uri=uri, client=_client(uri), deadline_s=time.monotonic() + timeout_s)


def _client(uri: str) -> Any:
    import mlflow

    # `create_external_model` asks the globals, not the client.
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """These values while the block runs. MLflow reads its bounds at each request; its defaults wait for minutes."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


@contextmanager
def only_once() -> Iterator[None]:
    """For what makes something: no second try, which would make it again where only the answer to the first was lost.

    This pass fails then; the next one finds by its tags what was made.
    """
    with _environment({_RETRIES_VARIABLE: "0"}):
        yield


@contextmanager
def _one_error(uri: str) -> Iterator[None]:
    with heavy_imports():
        from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise TrackingUnavailable(
            f"MLflow at {without_password(uri)} could not be brought up to date ({_reason(error, uri)}); training does not "
            "need it: the ledger is whole, and the next close or `prunella publish` catches up"
        ) from error


def _reason(error: Exception, uri: str) -> str:
    """One line; where MLflow does not know or does not let the user, what to do about it."""
    code = getattr(error, "error_code", "")
    if code == "UNAUTHENTICATED":
        unset = [name for name in _CREDENTIALS if not os.environ.get(name)]
        found = f"{' and '.join(unset)} not set" if unset else "the two that are set"
        return (
            f"401, it does not know the user: expected its name and password in {' and '.join(_CREDENTIALS)} of the "
            f"environment, found {found}; correct them there"
        )
    if code == "PERMISSION_DENIED":
        return (
            f"403, it does not let the user of {_CREDENTIALS[0]} do this: expected one who may edit the MLflow experiment; "
            "ask its owner for the permission EDIT"
        )
    return (str(error).splitlines() or [type(error).__name__])[0].replace(uri, without_password(uri))[:300]


def without_password(uri: str) -> str:
    """`uri` as it may be shown: whatever stands before the host's @ is left out."""
    return re.sub(r"://[^/@]*@", "://", uri)
