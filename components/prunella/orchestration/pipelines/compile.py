"""Pipelines as files: the same bytes from the same source, so that the repository can hold them and a test compare them."""

import warnings
from pathlib import Path

from kfp.compiler import Compiler

from prunella.errors import ConfigError
from prunella.orchestration.pipelines.form import Form
from prunella.orchestration.pipelines.pretrain_segment import pretrain_segment
from prunella.orchestration.pipelines.sweep_fleet import sweep_fleet

PIPELINES = {"pretrain_segment": pretrain_segment, "sweep_fleet": sweep_fleet}


def compile_pipelines(folder: Path, form: Form) -> list[Path]:
    """Write one YAML file a pipeline; returns their paths. Lightweight ones end in `.lightweight.yaml`.

    Raises:
        ConfigError: there is a file in the folder's place, or nothing may be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _compile(folder, form)
    except OSError as error:
        raise ConfigError(
            f"--output {folder}: expected a folder that can be written to, found: {error.strerror or error}; choose another"
        ) from error


def _compile(folder: Path, form: Form) -> list[Path]:
    suffix = ".yaml" if form.is_container else ".lightweight.yaml"
    written = []
    for name, build in PIPELINES.items():
        path = folder / f"{name}{suffix}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            Compiler().compile(build(form), str(path))
        written.append(path)
    return written
