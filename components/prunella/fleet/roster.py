"""Which nodes there are: the fleet file, or the default fleet.

Decides in which order nodes are wanted, and nothing about their health: a roster says what exists and what each node is
for. It trusts the file's author and checks only that the file can be meant as written.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import yaml

from prunella import codec
from prunella.config import Config
from prunella.errors import ConfigError
from prunella.ledger import Ledger, check_name, list_experiments
from prunella.records import NodeRef, NodeState
from prunella.storage import Store

logger = logging.getLogger(__name__)


class Role(StrEnum):
    """What a node is for: to train, or to step in."""

    ACTIVE = "active"
    SPARE = "spare"


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetNode:
    """A node of the fleet. `devices` counts its accelerators (on CPU: the processes it runs)."""

    name: str
    role: Role = Role.ACTIVE
    devices: int = 1

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.devices < 1:
            raise ConfigError(f"node {self.name!r}: expected at least 1 device, found {self.devices}")

    @property
    def ref(self) -> NodeRef:
        """The node as requests name it."""
        return NodeRef(name=self.name, devices=self.devices)


@dataclass(frozen=True, kw_only=True, slots=True)
class _FleetFile:
    nodes: tuple[FleetNode, ...]


_ADVICE = "expected `nodes:` with a list of `- {name: node-0, role: active, devices: 1}`, role active or spare"


def load_fleet(path: str | None, *, nodes: int) -> tuple[FleetNode, ...]:
    """The fleet of a file, or the default: `node-0`, `node-1` active and one spare, grown when `nodes` asks for more.

    Args:
        path: YAML file, or None for the default fleet.
        nodes: how many nodes the experiment trains on at once.

    Raises:
        ConfigError: the file is missing, not YAML, holds an unknown key or a node twice, or has fewer than `nodes` nodes.
    """
    if path is None:
        return default_fleet(nodes)
    document = _read_yaml(path)
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: not a fleet file: {_ADVICE}")
    fleet = codec.decode(_FleetFile, document, path).nodes
    _check(fleet, path, nodes)
    return fleet


def known_fleet(store: Store, path: str | None) -> tuple[FleetNode, ...]:
    """The nodes of a fleet file; without one, those of the experiments in the store, or of the default fleet.

    Args:
        path: YAML file. The file that an experiment names may be gone, or on another machine: then its nodes are left out.

    Raises:
        ConfigError: the file cannot be read, or that of no experiment can.
    """
    if path is not None:
        return load_fleet(path, nodes=1)
    configs = [Ledger(store, name).config() for name in list_experiments(store)] or [Config()]
    found: dict[str, FleetNode] = {}
    unread: list[ConfigError] = []
    for config in configs:
        try:
            found |= {node.name: node for node in load_fleet(config.fleet, nodes=config.nodes)}
        except ConfigError as error:
            logger.warning("fleet_left_out error=%s", error)
            unread.append(error)
    if not found:
        raise unread[0]
    return tuple(found.values())


def default_fleet(nodes: int) -> tuple[FleetNode, ...]:
    """`max(nodes, 2)` active nodes and one spare, one device each."""
    active = max(nodes, 2)
    names = [f"node-{index}" for index in range(active + 1)]
    return tuple(FleetNode(name=name, role=Role.SPARE if name == names[-1] else Role.ACTIVE) for name in names)


def _read_yaml(path: str) -> object:
    try:
        return yaml.safe_load(Path(path).read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such fleet file; leave --fleet out for the default fleet, or write one: {_ADVICE}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the fleet file cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}; {_ADVICE}") from error


def _check(fleet: tuple[FleetNode, ...], path: str, nodes: int) -> None:
    names = [node.name for node in fleet]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: node {twice[0]!r} is listed twice; a node is one machine, name each once")
    if len(fleet) < nodes:
        raise ConfigError(
            f"{path}: the experiment needs {nodes} nodes, the fleet has {len(fleet)} ({', '.join(names) or 'none'}); "
            "add nodes to the file or lower --nodes"
        )


def candidates_for_gate(fleet: Iterable[FleetNode], states: Mapping[str, NodeState]) -> tuple[NodeRef, ...]:
    """The nodes an attempt gates, in the order it wants them: active, then spare. Never a cordoned one."""
    usable = [node for node in fleet if states.get(node.name, NodeState.NEW) is not NodeState.CORDONED]
    ranked = sorted(usable, key=lambda node: node.role is Role.SPARE)
    return tuple(node.ref for node in ranked)
