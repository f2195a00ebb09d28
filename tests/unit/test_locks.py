"""The locks hold what pyproject.toml asks for, name no place to fetch from, and keep the two sides apart."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]
PIN = re.compile(r"[a-z0-9-]+==[0-9a-z.]+")

#: lock -> the extras it serves, as in requirements/lock.py.
LOCKS = {
    "dev": ("orchestrator", "worker", "trainer", "pipelines", "dev"),
    "orchestrator": ("orchestrator", "cluster", "prod"),
    "component": ("worker", "trainer", "pipelines"),
    "worker": ("worker", "pipelines"),
}


def _pins(lock: str) -> dict[str, str]:
    lines = (REPOSITORY / "requirements" / f"{lock}.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def _requirements(extras: tuple[str, ...]) -> list[Requirement]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return [Requirement(line) for line in listed]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_of_a_lock_is_a_bare_pin(lock: str) -> None:
    lines = (REPOSITORY / "requirements" / f"{lock}.lock").read_text().splitlines()

    strange = [line for line in lines if not line.startswith("#") and not PIN.fullmatch(line)]

    assert strange == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_satisfies_the_project(lock: str) -> None:
    pins = _pins(lock)

    unmet = [
        f"{requirement} (locked: {pins.get(canonicalize_name(requirement.name))}); run: make lock"
        for requirement in _requirements(LOCKS[lock])
        if not requirement.specifier.contains(pins.get(canonicalize_name(requirement.name), "0"), prereleases=True)
    ]

    assert unmet == []


def test_the_scheduling_side_needs_neither_torch_nor_kfp() -> None:
    assert not {"torch", "kfp", "mlflow", "pandas", "lm-eval", "prunella"} & _pins("orchestrator").keys()


def test_the_stages_side_needs_no_airflow() -> None:
    assert not [name for name in _pins("component") if name.startswith("apache-airflow")]


def test_the_worker_has_a_part_of_the_component_in_the_same_versions_and_no_torch() -> None:
    worker, component = _pins("worker"), _pins("component")

    assert worker.items() <= component.items()
    assert "torch" not in worker


def test_torch_is_pinned_where_it_is_used() -> None:
    assert {_pins(lock)["torch"] for lock in ("dev", "component")} == {"2.13.0"}


def test_a_package_in_two_locks_that_talk_to_one_store_has_one_version() -> None:
    locks = [_pins(lock) for lock in LOCKS]

    versions = {name: {pins[name] for pins in locks if name in pins} for name in ("mlflow-skinny", "boto3", "apache-airflow")}

    assert all(len(found) == 1 for found in versions.values()), versions
