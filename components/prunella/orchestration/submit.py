"""Opening an experiment: from a recipe or a file, overrides and faults to one immutable record.

The record is the configuration; whoever names the same experiment again must mean the same one, or is shown the
difference. Everything that can be refused before anything runs is refused here.
"""

import dataclasses
import importlib.metadata
import os
import platform
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunella import codec, config_text, faults
from prunella.config import Config
from prunella.data_prep.sources import check_inputs
from prunella.errors import ConfigError, KeyExists
from prunella.fleet.roster import FleetNode, candidates_for_gate, load_fleet
from prunella.ledger import Ledger, check_name, list_experiments, open_ledger
from prunella.model.expert_layout import expert_parallel_size
from prunella.orchestration.advance import next_cron_ns
from prunella.recipes import recipe as recipe_named
from prunella.records import ExperimentRecord, NodeRef
from prunella.storage import check_root_is_there, create_root, open_patiently, prove_root
from prunella.training_segment.split import split_batch

#: Files, globs and folders that new experiments train on where no configuration says otherwise, as a shell would list them.
DATA_VARIABLE = "PRUNELLA_DATA"
_RECORDED_PACKAGES = ("prunella", "torch", "safetensors", "tokenizers", "numpy", "apache-airflow", "mlflow")


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """What a person asked for, on the form or the command line. None means not given.

    `is_sole_writer`: nobody else can write to this experiment; read only where the store itself cannot arbitrate.
    """

    root: str
    experiment: str | None = None
    recipe: str | None = None
    config_file: str | None = None
    segments: int | None = None
    steps_per_segment: int | None = None
    nodes: int | None = None
    seed: int | None = None
    schedule: str | None = None
    fleet: str | None = None
    faults: tuple[str, ...] = ()
    assignments: tuple[str, ...] = field(default_factory=tuple)
    is_sole_writer: bool = False

    @property
    def is_configured(self) -> bool:
        """Whether anything but the root and the name was given."""
        given = (self.recipe, self.config_file, self.segments, self.steps_per_segment, self.nodes, self.seed, self.schedule)
        return any(value is not None for value in (*given, self.fleet)) or bool(self.assignments)


def resolve(submission: Submission, *, kept: Config | None = None) -> Config:
    """The configuration meant: recipe, then PRUNELLA_DATA, then file, then single options, then `--set`.

    Args:
        kept: what the experiment was opened with; it stands in for the recipe where neither that nor a file is given.

    Raises:
        ConfigError: anything in it cannot be meant.
    """
    values = config_text.parse_file(Path(submission.config_file)) if submission.config_file is not None else None
    recipe = _recipe(submission, values)
    base = _with_own_data(recipe_named(recipe or "tiny_moe")) if kept is None or recipe or values is not None else kept
    if values is not None:
        base = config_text.over(base, values, str(submission.config_file))
    chosen = config_text.replace(
        base,
        segments=submission.segments,
        steps_per_segment=submission.steps_per_segment,
        nodes=submission.nodes,
        seed=submission.seed,
        schedule=submission.schedule,
        fleet=str(Path(submission.fleet).absolute()) if submission.fleet else None,
    )
    asked = config_text.override(chosen, submission.assignments)
    if asked.recipe != chosen.recipe:
        raise ConfigError(f"--set recipe={asked.recipe}: a recipe is more than its name; give it with --recipe")
    return asked


def _recipe(submission: Submission, values: dict[str, Any] | None) -> str | None:
    """The recipe that was named, by option or in the file."""
    in_file = (values or {}).get("recipe")
    if in_file is not None and submission.recipe not in (None, in_file):
        raise ConfigError(
            f"--recipe {submission.recipe}: {submission.config_file} says recipe = {in_file!r}; leave one of them out"
        )
    return submission.recipe if in_file is None else str(in_file)


def _with_own_data(recipe: Config) -> Config:
    """The recipe on the corpus of this place, where PRUNELLA_DATA names one."""
    named = os.environ.get(DATA_VARIABLE, "")
    try:
        inputs = tuple(shlex.split(named))
    except ValueError as error:
        raise ConfigError(f"{DATA_VARIABLE}: expected paths with spaces between them, found {named!r} ({error})") from error
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, inputs=inputs)) if inputs else recipe


def open_experiment(submission: Submission) -> Ledger:
    """Open the experiment, or take up the one of that name if it means the same.

    Raises:
        ConfigError: the configuration is wrong, a fault impossible, or the root holds the experiment with another one.
    """
    prove_root(submission.root, is_sole_writer=submission.is_sole_writer)
    known = list_experiments(open_patiently(submission.root))
    name = submission.experiment or _only_name(submission.root, known) or "experiment"
    if name in known:
        ledger = open_ledger(submission.root, name)
        _check_same(ledger, submission)
        return ledger
    record = _opening(name, submission, resolve(submission))
    create_root(submission.root)
    ledger = open_ledger(submission.root, name)
    try:
        ledger.put(ledger.experiment_key, record)
    except KeyExists:
        _check_same(ledger, submission)
    return open_ledger(submission.root, name)


def find_experiment(root: str, name: str | None) -> Ledger:
    """The ledger of an existing experiment; without a name, of the only one under the root.

    Raises:
        ConfigError: there is none, or several and none was named.
    """
    check_root_is_there(root)
    names = list_experiments(open_patiently(root))
    if not names:
        raise ConfigError(f"--root {root}: no experiment here; start one with `prunella run --root {root}`")
    if name is not None and name not in names:
        raise ConfigError(f"--experiment {name}: no such experiment under {root}; it holds {', '.join(names)}")
    return open_ledger(root, name or _only_name(root, names) or names[0])


def _only_name(root: str, names: list[str]) -> str | None:
    """The one experiment under a root, or None. Raises ConfigError where there are several to choose from."""
    if len(names) > 1:
        raise ConfigError(f"--root {root}: several experiments here ({', '.join(names)}); choose one with --experiment NAME")
    return names[0] if names else None


def _opening(name: str, submission: Submission, config: Config) -> ExperimentRecord:
    roster = load_fleet(config.fleet, nodes=config.nodes)
    fleet = tuple(NodeRef(name=node.name, devices=node.devices) for node in roster)
    world_size = _world_size(roster, config.nodes)
    split_batch(config.batch, world_size)
    expert_parallel_size(config, world_size)
    check_inputs(config.data, open_patiently(submission.root))
    if config.schedule.startswith("cron:"):
        next_cron_ns(config.schedule.removeprefix("cron:"), time.time_ns())
    specs = tuple(submission.faults)
    for spec in specs:
        faults.check_possible(faults.parse(spec), config, fleet)
    if len(set(specs)) != len(specs):
        raise ConfigError("--fault: the same fault was asked for twice; each fires once an experiment")
    return ExperimentRecord(
        name=check_name(name),
        opened_ns=time.time_ns(),
        config=config_text.to_mapping(config),
        config_digest=codec.digest(config),
        faults=specs,
        versions=_versions(),
    )


def _world_size(roster: Sequence[FleetNode], nodes: int) -> int:
    """Ranks of whatever team trains. Raises ConfigError where another team would have another number of them."""
    devices = {node.devices for node in roster}
    if len(roster) > nodes and len(devices) > 1:
        raise ConfigError(
            f"--fleet: expected nodes with equally many devices, because any {nodes} of these {len(roster)} may train, found "
            f"{', '.join(f'{node.name}: {node.devices}' for node in roster)}; leave some out of the file, or devices unused"
        )
    return sum(node.devices for node in candidates_for_gate(roster, {})[:nodes])


def _check_same(ledger: Ledger, submission: Submission) -> None:
    """A repeated submission must resolve to the recorded configuration, with later extensions of segments allowed for."""
    if not submission.is_configured and not submission.faults:
        return
    record, recorded = ledger.experiment(), ledger.config()
    opened_with = config_text.from_mapping(record.config, ledger.experiment_key)
    asked = resolve(submission, kept=opened_with)
    if asked.segments == opened_with.segments:
        asked = config_text.replace(asked, segments=recorded.segments)
    lines = config_text.difference(config_text.to_mapping(recorded), config_text.to_mapping(asked))
    if submission.faults and set(submission.faults) != set(record.faults):
        lines.append(f"faults: {list(record.faults)} -> {list(submission.faults)}")
    if lines:
        raise ConfigError(
            f"--root {ledger.store.root}: experiment {ledger.name!r} was opened with another configuration "
            f"(recorded -> asked):\n  " + "\n  ".join(lines) + "\ntake another --experiment or --root; "
            "`prunella extend` adds segments"
        )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
