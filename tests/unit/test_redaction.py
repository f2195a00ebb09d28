"""No secret of the environment in words for people: log lines, errors, records, exit notes. Names, keys and settings stay."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunella import logs
from prunella.errors import Cause
from prunella.records import FailedRecord, Failure, NodeEvent, NodeState, Stage, Verdict, from_bytes, to_bytes
from prunella.redaction import SECRET_VARIABLES, redacted, secrets
from prunella.training_segment.exits import Ending, note_path, write_note
from prunella.training_segment.heartbeat import Pulse

SECRET = "hunter2-in-the-environment"
#: Addresses that hold a password among other things.
ADDRESSES = {
    "PRUNELLA_DATABASE": f"postgresql+psycopg2://prunella:{SECRET}@db.example/airflow",
    "MLFLOW_BACKEND_STORE_URI": f"postgresql://prunella:{SECRET}@db.example:5432/mlflow",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql://:{SECRET}@/airflow?host=/run/postgresql",
    "HTTPS_PROXY": f"http://me:{SECRET}@proxy.example:3128",
}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> str:
    """A secret that this process was given."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return SECRET


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What `prunella.*` logs; afterwards logging is as it was."""
    loggers = [logging.getLogger(name) for name in ("prunella", "prunella.stage")]
    before = [(logger, logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    hook, last = sys.excepthook, logging.lastResort
    stream = io.StringIO()
    logs.configure(stream=stream)
    yield stream
    sys.excepthook = hook
    if last is not None:
        last.setFormatter(None)
    for logger, handlers, propagate, level in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


# ------------------------------------------------------------------------------------------------ what a secret is


@pytest.mark.parametrize("variable", SECRET_VARIABLES)
def test_the_value_of_a_secret_variable_is_masked(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, SECRET)

    assert redacted(f"refused: {SECRET}!") == "refused: ***!"


@pytest.mark.parametrize("variable", ADDRESSES)
def test_of_an_address_the_password_is_masked_and_the_rest_stays(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, ADDRESSES[variable])

    assert redacted(f"no answer from {ADDRESSES[variable]}") == f"no answer from {ADDRESSES[variable].replace(SECRET, '***')}"


def test_a_password_is_masked_as_an_address_writes_it_and_as_a_server_says_it() -> None:
    found = secrets({"PRUNELLA_DATABASE": "postgresql://me:p%40ss%2Fword@db/airflow"})

    assert {"p%40ss%2Fword", "p@ss/word"} <= set(found)


def test_of_a_webhook_the_path_alone_is_a_secret_too() -> None:
    found = secrets({"PRUNELLA_ALERT_WEBHOOK": "https://hooks.example/services/T1/B2/key"})

    assert "/services/T1/B2/key" in found


def test_words_too_short_or_ours_are_spared_because_every_line_would_lose_them() -> None:
    environment = {"MLFLOW_TRACKING_PASSWORD": "step", "PRUNELLA_DATABASE": "postgresql://prunella:prunella@db/airflow"}

    assert secrets(environment) == []


# ------------------------------------------------------------------------------------------------ where it is masked


def test_a_log_line_and_its_traceback_hold_no_secret(known: str, lines: io.StringIO) -> None:
    try:
        raise RuntimeError(f"connection to {known} refused")
    except RuntimeError as error:
        logging.getLogger("prunella.storage").error("call_failed key=%s error=%s", known, error, exc_info=True)

    assert "call_failed key=*** error=connection to *** refused" in lines.getvalue()
    assert "RuntimeError: connection to *** refused" in lines.getvalue()
    assert known not in lines.getvalue()


def test_a_line_that_is_relayed_from_a_stage_holds_no_secret(known: str, lines: io.StringIO) -> None:
    logging.getLogger("prunella.stage").info("a library printed %s", known)

    assert lines.getvalue() == "a library printed ***\n"


def test_a_warning_of_a_library_holds_no_secret() -> None:
    program = (
        "import logging, os; from prunella import logs; logs.configure(); "
        "logging.getLogger('botocore').warning('signed with %s', os.environ['AWS_SECRET_ACCESS_KEY'])"
    )
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": SECRET}

    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)

    assert done.stderr == "signed with ***\n"


def test_an_error_that_nobody_caught_is_printed_without_the_secret() -> None:
    program = "import os; from prunella import logs; logs.configure(); raise OSError(os.environ['AWS_SECRET_ACCESS_KEY'])"
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": SECRET}

    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "OSError: ***"
    assert SECRET not in done.stderr


def test_an_error_of_the_command_line_holds_no_secret() -> None:
    command = [sys.executable, "-m", "prunella", "status", "--root", f"/nowhere/{SECRET}"]
    environment = {**os.environ, "AWS_SESSION_TOKEN": SECRET}

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "/nowhere/***" in done.stderr
    assert SECRET not in done.stderr


def test_the_words_of_a_record_hold_no_secret(known: str) -> None:
    failure = Failure(cause=Cause.UNKNOWN, message=f"bad key {known}", evidence={"traceback": f"...\nOSError: {known}"})
    record = FailedRecord(stage=Stage.DATA_PREP, verdict=Verdict.REJECTED, started_ns=1, ended_ns=2, failure=failure)

    written = from_bytes(FailedRecord, to_bytes(record), "a key").failure

    assert (written.message, written.evidence) == ("bad key ***", {"traceback": "...\nOSError: ***"})


def test_a_name_that_happens_to_be_a_password_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "node-0")
    event = NodeEvent(node="node-0", state=NodeState.AVAILABLE, owner="gate", reason="node-0 passed", at_ns=1)

    written = from_bytes(NodeEvent, to_bytes(event), "a key")

    assert (written.node, written.reason) == ("node-0", "*** passed")


def test_the_exit_note_of_a_rank_holds_no_secret(known: str, tmp_path: Path) -> None:
    error = RuntimeError(f"bad key {known}")

    write_note(tmp_path, Pulse(tmp_path, rank=0, node="node-0"), Ending(last_step=3), rank=0, node="node-0", error=error)

    note = json.loads(note_path(tmp_path, 0).read_text())
    assert note["failure"]["message"] == "bad key ***"
    assert known not in note_path(tmp_path, 0).read_text()
