"""Who may trigger, who may override, and who may promote, under the FAB auth manager."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import prunella
from prunella.orchestration import airflow_home

JOB = Path(__file__).with_name("roles_job.py")
ROLES = Path(prunella.__file__).parent / "orchestration" / "airflow_roles.json"
MANAGER = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"


@pytest.fixture(scope="module")
def let_in(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What users of each role were let in for. The home is made as the README says."""
    home = tmp_path_factory.mktemp("home")
    environment = {
        **os.environ,
        **airflow_home.environment(home),
        "AIRFLOW__CORE__AUTH_MANAGER": MANAGER,
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "false",
        "AIRFLOW__API_AUTH__JWT_SECRET": "only-for-this-test-" * 4,
    }

    def run(*command: str) -> str:
        answer = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    run("-m", "airflow", "db", "migrate")
    run("-m", "airflow", "dags", "reserialize")
    run("-m", "airflow", "sync-perm", "--include-dags")
    run("-m", "airflow", "roles", "import", str(ROLES))
    line = next(line for line in run(str(JOB)).splitlines() if line.startswith("FOUND "))
    return json.loads(line.removeprefix("FOUND "))


def test_who_only_looks_changes_nothing(let_in: dict[str, list[str]]) -> None:
    assert let_in["viewer"] == ["look"]


def test_who_may_trigger_starts_segments_and_nothing_else(let_in: dict[str, list[str]]) -> None:
    assert let_in["trigger"] == ["look", "trigger"]


def test_who_may_override_answers_and_clears_but_starts_nothing(let_in: dict[str, list[str]]) -> None:
    assert let_in["override"] == ["look", "answer", "clear a task", "end a run"]


def test_who_may_promote_accepts_checkpoints_and_nothing_else(let_in: dict[str, list[str]]) -> None:
    assert let_in["promote"] == ["look", "promote"]
