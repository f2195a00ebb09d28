"""The environment that Airflow is deployed from: it has what schedules, and nothing that trains."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from prunella.orchestration import airflow_home


@pytest.mark.parametrize("library", ["torch", "kfp", "mlflow", "pandas", "lm-eval", "pyarrow"])
def test_what_trains_and_what_tracks_is_not_installed(library: str) -> None:
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution(library)


@pytest.mark.parametrize("name", ["pretrain_segment", "advance_experiments", "promote_checkpoint", "sweep_fleet"])
def test_a_dag_file_is_read_without_it(name: str, tmp_path: Path) -> None:
    path = airflow_home.dags_folder() / f"{name}.py"

    done = subprocess.run(
        [sys.executable, "-c", f"import runpy; print(sorted(runpy.run_path({str(path)!r})['dag'].task_dict)[:1])"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() != "[]"
