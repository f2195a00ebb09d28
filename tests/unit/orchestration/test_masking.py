"""What a task of Airflow logs leaves its process without a secret of the environment, whoever prints it afterwards."""

import os
import subprocess
import sys

SECRET = "hunter2-in-the-environment"
#: As Airflow's task process logs: towards its supervisor, which masks one of two copies.
TASK = """
import logging, os, sys
import structlog
from airflow.sdk.log import configure_logging
from prunella.orchestration.masking import mask_secrets

configure_logging(json_output=True, output=sys.stdout.buffer, sending_to_supervisor=True)
in_use = structlog.get_logger(logger_name="in use")
in_use.info("began")
mask_secrets({})
secret = os.environ["AWS_SECRET_ACCESS_KEY"]
in_use.error("refused %s", secret)
structlog.get_logger(logger_name="new").error("refused", key=secret)
logging.getLogger("prunella.storage").error("refused %s", secret)
try:
    raise OSError(f"refused {secret}")
except OSError:
    in_use.exception("Task failed with exception")
"""


def test_a_task_that_logs_a_secret_and_fails_with_it_hands_neither_on() -> None:
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": SECRET}

    done = subprocess.run([sys.executable, "-c", TASK], env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("***") == 4, done.stdout
    assert SECRET not in done.stdout + done.stderr
