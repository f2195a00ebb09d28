"""The pipeline without a cluster: Kubeflow's own local runner, one subprocess a component, segment after segment.

The ledger says what was done, not the runner: a pipeline that the runner calls failed may have healed, and the same command
after a kill -9 goes on. What the runner keeps of artifacts is thrown away; what matters of them is in the ledger.
"""

import builtins
import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from kfp import local

from prunella.ledger import Ledger
from prunella.orchestration.pipelines.form import Form
from prunella.orchestration.pipelines.pretrain_segment import pretrain_segment
from prunella.orchestration.run import RunSegment

#: What a component may take to see its stage off. Source: `launch.door.stop` gives a stage 30 s, 2026-11.
_GRACE_S = 40.0


@contextmanager
def local_pipeline_engine() -> Iterator[RunSegment]:
    """The pipeline of one segment, run in this process's own environment."""
    pipeline = pretrain_segment(Form())
    with tempfile.TemporaryDirectory(prefix="prunella-pipeline-") as artifacts, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You may be attemping to run a task", category=RuntimeWarning)
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=artifacts, raise_on_error=False)

        def run_segment(ledger: Ledger, run_id: str) -> None:
            with contextlib.redirect_stdout(sys.stderr), _print_as_it_was():
                # Whether several may write was settled when the experiment was opened, a moment ago, by this command.
                pipeline(root=ledger.store.root, experiment=ledger.name, run_id=run_id, sole_writer=True)

        try:
            yield run_segment
        finally:
            _end_components()


@contextmanager
def _print_as_it_was() -> Iterator[None]:
    """Loops of kfp 2.17.0's runner indent what is printed, in threads that put back each other's `print`: it stays indented."""
    plain = builtins.print
    try:
        yield
    finally:
        builtins.print = plain


def _end_components() -> None:
    """SIGTERM the components that an interrupt left behind, and wait: each asks its stage to save, and ends with it."""
    found = [process for process in psutil.Process().children(recursive=True) if _is_component(process)]
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    psutil.wait_procs(found, timeout=_GRACE_S)


def _is_component(process: psutil.Process) -> bool:
    """Stages run in sessions of their own."""
    with contextlib.suppress(ProcessLookupError):
        return os.getsid(process.pid) == os.getsid(0)
    return False
