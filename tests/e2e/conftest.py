"""The unbroken experiment that every healed one is compared with: run once a session, whatever the number of its workers."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from filelock import FileLock

from e2e.campaign import Campaign, assert_complete

#: What the unbroken experiment is given and must keep to itself (test_secrets.py looks everywhere).
SECRET = "hunter2-in-the-environment"
SECRETS = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "PRUNELLA_AIRFLOW_PASSWORD",
    "PRUNELLA_ALERT_WEBHOOK",
)


@dataclass(frozen=True)
class Finished(Campaign):
    """An experiment that nobody changes any more: its digest is asked for once, because that takes seconds."""

    @cached_property
    def _last_digest(self) -> str:
        return super().digest()

    def digest(self, *options: str) -> str:
        return super().digest(*options) if options else self._last_digest


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """The experiment that nothing happened to. The first worker that asks runs it, the others wait."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "unbroken"
    campaign = Finished(folder, environment=dict.fromkeys(SECRETS, SECRET))
    is_done = folder / "is-done"
    with FileLock(folder.with_suffix(".lock")):
        if not is_done.exists():
            done = campaign.run()
            (folder / "command.log").write_text(done.stdout + done.stderr)
            summary = assert_complete(done, campaign)
            assert summary["incidents"] == []
            is_done.touch()
    return campaign


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """A new experiment."""
    return Campaign(tmp_path / "campaign")
