"""Stages as processes of this machine, in a session of their own: they survive the Airflow worker that started them."""

import os
import subprocess
import sys
from pathlib import Path


def interpreter() -> str:
    """The Python that runs stages: PRUNELLA_PYTHON, else this one. Airflow's own environment needs no torch."""
    return os.environ.get("PRUNELLA_PYTHON", sys.executable)


def start(arguments: list[str], *, log: Path, node: str | None = None) -> subprocess.Popen[bytes]:
    """Start `python -m prunella` with these arguments."""
    environment = {**os.environ, **({"PRUNELLA_NODE": node} if node else {})}
    with log.open("ab") as output:
        return subprocess.Popen(
            [interpreter(), "-m", "prunella", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
