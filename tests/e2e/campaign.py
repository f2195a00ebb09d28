"""Whole experiments through the command line, as a user runs them: small enough for a test, real in every part."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from waiting import wait_until

PRUNELLA = Path(sys.executable).with_name("prunella")
SEGMENTS = 2
STEPS_PER_SEGMENT = 6
INTERVAL_STEPS = 3

CONFIGURATION = f"""
recipe = "tiny_moe"
segments = {SEGMENTS}
steps_per_segment = {STEPS_PER_SEGMENT}

[model]
vocab_size = 320
seq_len = 32
d_model = 32
n_layers = 2
n_heads = 2
n_kv_heads = 1
head_dim = 16
n_experts = 4
expert_ffn_dim = 32
router_bias = true

[data]
inputs = ["builtin:stdlib"]
max_bytes = 300000
tokenizer_train_bytes = 50000
workers = 1

[batch]
global_sequences = 8
micro_sequences = 2

[checkpoint]
interval_steps = {INTERVAL_STEPS}

[evaluation]
heldout_sequences = 8
questions = 4

[training]
hang_floor_s = 8.0

[tracking]
timeout_s = 60.0
"""

#: The same steps in one segment. It ends where two do (`test_cuts.py`) and is a gate, a start and an evaluation cheaper: for
#: tests to which nothing happens between segments.
IN_ONE_SEGMENT = ("--segments", "1", "--steps-per-segment", str(SEGMENTS * STEPS_PER_SEGMENT))


@dataclass(frozen=True)
class Campaign:
    """One experiment under a root of its own, and the command line that runs it.

    `runs_by` is the command that runs experiments: `run`, or another that takes and means the same. `bucket` is the root
    where that is no folder. `airflow` is the command line whose Airflow schedules, where that is another one.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    runs_by: tuple[str, ...] = ("run",)
    bucket: str | None = None
    airflow: Path = PRUNELLA

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def command(self, *arguments: str) -> list[str]:
        """The command line of a `prunella` command on this root."""
        return [str(PRUNELLA), *arguments, "--root", self.bucket or str(self.root)]

    def run(self, *options: str, timeout_s: float = 420.0) -> subprocess.CompletedProcess[str]:
        """`prunella run` with the small configuration."""
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "experiment.toml"
        configuration.write_text(CONFIGURATION)
        _, *command = self.command(*self.runs_by)
        return self._call(str(self.airflow), *command, "--config", str(configuration), *options, timeout_s=timeout_s)

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """`prunella run` in the background, its output in `run.log`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "experiment.toml"
        configuration.write_text(CONFIGURATION)
        with (self.folder / "run.log").open("ab") as log:
            return subprocess.Popen(
                [*self.command(*self.runs_by), "--config", str(configuration), *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,
            )

    def take_over(self, origin: "Campaign") -> None:
        """A root of its own with all that `origin` did."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(origin.root, self.root)

    def prunella(self, *arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Any `prunella` command on this root."""
        return self._call(*self.command(*arguments), timeout_s=timeout_s)

    def digest(self, *options: str) -> str:
        """`prunella checkpoint digest`."""
        done = self._call(*self.command("checkpoint", "digest"), *options, timeout_s=60.0)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def summary(self) -> dict[str, Any]:
        """`prunella status --json`."""
        done = self._call(*self.command("status"), "--json", timeout_s=60.0)
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def _call(self, *command: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=self._environment(), check=False)

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        own = {"PRUNELLA_SCRATCH": str(self.folder / "scratch"), "PRUNELLA_PUBLISHED": str(self.folder / "published")}
        return {**inherited, **own, **self.environment}


def assert_complete(done: subprocess.CompletedProcess[str], campaign: Campaign) -> dict[str, Any]:
    """The command succeeded and the books balance; returns the summary."""
    assert done.returncode == 0, done.stderr[-6000:]
    summary = campaign.summary()
    assert summary["state"] == "complete"
    assert summary["steps"] == SEGMENTS * STEPS_PER_SEGMENT
    parts = sum(seconds for part, seconds in summary["time_s"].items() if part != "elapsed")
    assert abs(parts - summary["time_s"]["elapsed"]) < 1e-6
    assert all(incident["lost_steps"] <= INTERVAL_STEPS for incident in summary["incidents"])
    return summary


def causes(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """(cause, decision) of each incident, in order."""
    return [(incident["cause"], incident["decision"]) for incident in summary["incidents"]]


def wait_for(path: Path, command: subprocess.Popen[bytes]) -> None:
    """Until a file is there; fails when the command ends before."""
    wait_until(path.exists, f"{path} is there", every_s=0.02, command=command)


def wait_for_ranks(campaign: Campaign, command: subprocess.Popen[bytes], attempt: int) -> None:
    """Until rank 0 of an attempt has begun its first step or later: then an interrupt finds something to finish."""
    steps = f"0000/{attempt:02d}-*/steps.jsonl"
    wait_until(lambda: list((campaign.folder / "scratch").rglob(steps)), "a rank began", every_s=0.02, command=command)


def processes_of(campaign: Campaign) -> list[psutil.Process]:
    """Processes of this machine that work on the campaign, except its publications, which may outlive the command."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if str(campaign.folder) in line and "prunella publish" not in line:
            found.append(process)
    return found
