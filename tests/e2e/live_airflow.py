"""A live Airflow for tests: started once, its services restarted when they die, its experiments watched through the ledger."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from e2e.campaign import CONFIGURATION
from prunella.ledger import Ledger
from prunella.orchestration import live
from prunella.orchestration.airflow_api import AirflowApi
from prunella.orchestration.claim import continuation, next_segment, run_id_for
from prunella.orchestration.services import Supervisor
from prunella.orchestration.submit import Submission, open_experiment
from waiting import wait_until

DAG_ID = "pretrain_segment"


@dataclass(frozen=True)
class LiveAirflow:
    """A running Airflow, and the folder it works in."""

    settings: live.LiveSettings
    api: AirflowApi
    supervisor: Supervisor

    def open(self, name: str, *options: str, segments: int, schedule: str, faults: tuple[str, ...] = ()) -> Ledger:
        """Open a small experiment under the live root."""
        configuration = self.settings.folder / "experiment.toml"
        configuration.write_text(CONFIGURATION)
        return open_experiment(
            Submission(
                root=self.settings.root,
                experiment=name,
                config_file=str(configuration),
                segments=segments,
                schedule=schedule,
                faults=faults,
                assignments=options,
            )
        )

    def trigger(self, ledger: Ledger) -> str:
        """Start the experiment's next DAG run, as the command line does."""
        segment = next_segment(ledger)
        assert segment is not None
        return self.api.trigger(DAG_ID, conf=continuation(ledger), run_id=run_id_for(ledger, segment))


@contextmanager
def live_airflow(
    folder: Path,
    *,
    with_mlflow: bool = False,
    schedulers: int = 1,
    python: str = sys.executable,
    root: str | None = None,
) -> Iterator[LiveAirflow]:
    """Airflow up and ready; everything it started is gone afterwards. `root` is a bucket; a folder of its own by default."""
    inherited = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("AIRFLOW")}
    scratch = os.environ.get("PRUNELLA_SCRATCH")
    os.environ["PRUNELLA_SCRATCH"] = str(folder / "scratch")
    found = live.settings_for(folder, with_mlflow=with_mlflow, root=root)
    settings = dataclasses.replace(found, schedulers=schedulers, python=python)
    try:
        with live.start(settings) as supervisor:
            api = AirflowApi(settings.airflow_url, live.USER, live.password(settings))
            api.wait_until_ready(DAG_ID)
            yield LiveAirflow(settings=settings, api=api, supervisor=supervisor)
    finally:
        for process in processes_under(folder):
            process.kill()
        os.environ.update(inherited)
        if scratch is not None:
            os.environ["PRUNELLA_SCRATCH"] = scratch


#: Run by Airflow's own Python: its newest revision, and the one before.
_REVISIONS = """
from airflow.utils.db import _get_alembic_config
from alembic.script import ScriptDirectory
newest = ScriptDirectory.from_config(_get_alembic_config()).get_revision("head")
print("FOUND", newest.revision, newest.down_revision)
"""


def downgrade(variables: dict[str, str]) -> tuple[str, str]:
    """Take Airflow's database back by one revision, with Airflow's own command; returns the newest and the one it has now."""

    def said(*arguments: str) -> str:
        environment = {**os.environ, **variables}
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    found = next(line for line in said("-c", _REVISIONS).splitlines() if line.startswith("FOUND "))
    _, newest, older = found.split()
    said("-m", "airflow", "db", "downgrade", "--yes", "--to-revision", older)
    return newest, older


def processes_under(folder: Path) -> list[psutil.Process]:
    """Every process whose command line or Airflow home names the folder: services, tasks, stages, agents, ranks."""
    found = []
    for process in psutil.process_iter():
        try:
            is_ours = str(folder) in " ".join(process.cmdline()) or process.environ().get("AIRFLOW_HOME", "").startswith(
                str(folder)
            )
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if is_ours and process.pid != os.getpid():
            found.append(process)
    return found


def wait_until_complete(ledger: Ledger, timeout_s: float) -> None:
    """Wait for the last accepted close."""
    wait_until(lambda: next_segment(ledger) is None, f"{ledger.name} is complete", timeout_s=timeout_s, every_s=0.5)
