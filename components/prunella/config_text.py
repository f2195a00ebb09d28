"""A configuration as text: from a file, from assignments, as a record stores it, and what differs between two.

Whoever reads one here gets it checked (`config.py`), or a ConfigError that names the key. Imports the standard library only.
"""

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

from prunella import codec
from prunella.config import Config
from prunella.errors import ConfigError


def from_mapping(values: dict[str, Any], where: str) -> Config:
    """A configuration from a parsed document; absent keys take their defaults."""
    return codec.decode(Config, values, where)


def to_mapping(config: Config) -> dict[str, Any]:
    """The JSON form of a configuration: what the experiment record stores."""
    mapping: dict[str, Any] = codec.encode(config)
    return mapping


def override(config: Config, assignments: tuple[str, ...] | list[str]) -> Config:
    """Apply `key=value` assignments, `key` dotted, `value` in TOML's notation (a bare word is a string).

    Raises:
        ConfigError: an assignment names no known key, or its value has the wrong type.
    """
    mapping = to_mapping(config)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--set {assignment}: expected key=value, for example --set optim.learning_rate=1e-3")
        _assign(mapping, key.strip(), _parse_value(text.strip()), f"--set {assignment}")
    return from_mapping(mapping, "--set")


def _assign(mapping: dict[str, Any], key: str, value: Any, where: str) -> None:
    table = mapping
    *parents, leaf = key.split(".")
    for parent in parents:
        if not isinstance(table.get(parent), dict):
            raise ConfigError(f"{where}: unknown key {parent!r}{codec.suggest(parent, list(table))}")
        table = table[parent]
    if leaf not in table:
        raise ConfigError(f"{where}: unknown key {key!r}{codec.suggest(leaf, list(table))}")
    table[leaf] = value


def _parse_value(text: str) -> Any:
    if text == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def parse_file(path: Path) -> dict[str, Any]:
    """What an `experiment.toml` says, unchecked.

    Raises:
        ConfigError: the file is missing or no TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file; `prunella recipe show tiny_moe --toml` prints one") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give a readable TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def over(base: Config, values: dict[str, Any], where: str) -> Config:
    """A parsed `experiment.toml` laid over `base`.

    Raises:
        ConfigError: it holds an unknown key, a wrong type or a value that cannot be.
    """
    return from_mapping(_merge(to_mapping(base), values), where)


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        is_table = isinstance(value, dict) and isinstance(under.get(key), dict)
        merged[key] = _merge(under[key], value) if is_table else value
    return merged


def to_toml(config: Config) -> str:
    """Every setting of the configuration as an `experiment.toml`. One that is None is a comment: TOML has no word for it."""
    top, tables = [], []
    for key, value in to_mapping(config).items():
        if isinstance(value, dict):
            tables += ["", f"[{key}]", *(_setting(name, item) for name, item in value.items())]
        else:
            top.append(_setting(key, value))
    return "\n".join(top + tables)


def _setting(name: str, value: Any) -> str:
    """A line of TOML; of what is not set, what `--set` would say of it."""
    return f"{name} = {json.dumps(value)}" if value is not None else f"# {name} = none"


def difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines `key: old -> new` for every leaf that differs between two configurations' JSON forms."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(before, dict) and isinstance(after, dict):
            lines += difference(before, after, f"{name}.")
        elif before != after:
            lines.append(f"{name}: {before!r} -> {after!r}")
    return lines


def replace(config: Config, **changes: Any) -> Config:
    """`dataclasses.replace` for a configuration, leaving out changes that are None (not given)."""
    return dataclasses.replace(config, **{key: value for key, value in changes.items() if value is not None})
