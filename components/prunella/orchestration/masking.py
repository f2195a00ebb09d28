"""Airflow's own masker is told what the logs of our tasks may not hold: the `pre_execute` of every task of the DAGs."""

import logging
from typing import Any

import structlog
from airflow.sdk.log import mask_logs, mask_secret

from prunella.redaction import secrets


def mask_secrets(_context: Any) -> None:
    """Have Airflow mask the secrets of the environment in whatever this task logs."""
    for secret in secrets():
        mask_secret(secret)
    _mask_in_this_process()


def _mask_in_this_process() -> None:
    """Airflow 3.3.2 masks where it writes the file of a task's log: neither the copy that its local executor prints, nor what
    `dag.test()` prints. To be deleted when it masks those."""
    processors = structlog.get_config()["processors"]
    if mask_logs not in processors:
        processors.insert(-1, mask_logs)  # in place: loggers in use keep this very list
    for handler in logging.getLogger().handlers:
        formatter = handler.formatter
        if isinstance(formatter, structlog.stdlib.ProcessorFormatter) and mask_logs not in formatter.processors:
            formatter.processors = (*formatter.processors[:-1], mask_logs, formatter.processors[-1])
