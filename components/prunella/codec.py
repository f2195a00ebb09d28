"""Frozen dataclasses to and from JSON, strictly.

One codec serves records, requests and configuration: unknown keys, missing keys and wrong types are errors that name the
path of the value. It never guesses and never converts a string into a number. NaN and infinities, which JSON lacks, travel
as the strings "nan", "inf" and "-inf" in float fields.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import types
import typing
from enum import StrEnum
from typing import Any, TypeVar

from prunella.errors import ConfigError

T = TypeVar("T")

_FLOAT_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode(value: Any) -> Any:
    """JSON-ready form of a dataclass, enum, tuple, dict or scalar."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = field_types(type(value))
        return {f.name: encode(_widen(hints[f.name], getattr(value, f.name))) for f in dataclasses.fields(value)}
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


def canonical_json(value: Any) -> bytes:
    """The one byte form of a value: sorted keys, no spaces, UTF-8."""
    return json.dumps(encode(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any) -> str:
    """sha256 (64 hex digits) of the canonical form."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def decode(expected: type[T], value: Any, where: str) -> T:
    """Build `expected` from parsed JSON or TOML.

    Args:
        where: path of the value, for error messages ("experiment.toml: model").

    Raises:
        ConfigError: a key is unknown or missing, or a value has another type than declared.
    """
    return typing.cast(T, _decode(expected, value, where))


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Resolved type of each field of a dataclass."""
    return typing.get_type_hints(cls)


def _widen(expected: Any, value: Any) -> Any:
    """An int in a float field as a float, so that a value and its decoded copy have the same bytes and digest."""
    is_union = typing.get_origin(expected) in (typing.Union, types.UnionType)
    options = typing.get_args(expected) if is_union else (expected,)
    if isinstance(value, int) and not isinstance(value, bool) and float in options and int not in options:
        return float(value)
    if typing.get_origin(expected) is tuple and isinstance(value, (list, tuple)):
        return [_widen(typing.get_args(expected)[0], item) for item in value]
    return value


def _decode(expected: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(expected)
    if expected is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _decode_union(typing.get_args(expected), value, where)
    if dataclasses.is_dataclass(expected):
        return _decode_dataclass(typing.cast(type, expected), value, where)
    if origin is tuple:
        return _decode_tuple(typing.get_args(expected)[0], value, where)
    if origin is dict:
        return _decode_dict(typing.get_args(expected)[1], value, where)
    return _decode_scalar(expected, value, where)


def _decode_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    concrete = [option for option in options if option is not type(None)]
    errors = []
    for option in concrete:
        try:
            return _decode(option, value, where)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def _decode_dataclass(cls: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a table, found {_describe(value)}")
    hints = field_types(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    for key in value:
        if key not in names:
            raise ConfigError(f"{where}: unknown key {key!r}{suggest(str(key), names)}")
    required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in value]
    if missing:
        raise ConfigError(f"{where}: missing key {missing[0]!r}")
    return cls(**{key: _decode(hints[key], item, f"{where}.{key}") for key, item in value.items()})


def _decode_tuple(item_type: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: expected a list, found {_describe(value)}")
    return tuple(_decode(item_type, item, f"{where}[{index}]") for index, item in enumerate(value))


def _decode_dict(item_type: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a table, found {_describe(value)}")
    return {str(key): _decode(item_type, item, f"{where}.{key}") for key, item in value.items()}


def _decode_scalar(expected: Any, value: Any, where: str) -> Any:
    if isinstance(expected, type) and issubclass(expected, StrEnum):
        return _decode_enum(expected, value, where)
    if expected is float:
        if isinstance(value, str) and value in _FLOAT_WORDS:
            return _FLOAT_WORDS[value]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, expected) and (expected is bool) == isinstance(value, bool):
        return value
    raise ConfigError(f"{where}: expected {expected.__name__}, found {_describe(value)}")


def _decode_enum(expected: type[StrEnum], value: Any, where: str) -> StrEnum:
    choices = [member.value for member in expected]
    if value not in choices:
        raise ConfigError(f"{where}: expected one of {', '.join(choices)}, found {_describe(value)}")
    return expected(value)


def suggest(word: str, known: list[str]) -> str:
    """A hint to append to an error about an unknown word, or nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"


def _describe(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"
