"""Nested dictionaries into frozen dataclasses, strictly: every key, every type, every choice of a word.

Knows nothing of training: the training configuration and the hyper-parameters of the families are read
with it.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tfswa.runtime.documents import parse_toml, read_document
from tfswa.runtime.errors import ConfigError

T = TypeVar("T")

LARGEST = 2**63


def read_toml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a TOML file and apply ``section.key=value`` overrides, values in TOML's syntax.

    Raises:
        ConfigError: unreadable, not TOML, or an override without '='.
    """
    try:
        data = parse_toml(read_document(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return parse_overrides(overrides, data)


def parse_overrides(overrides: Sequence[str], data: dict[str, Any] | None = None) -> dict[str, Any]:
    """``section.key=value`` strings into nested dictionaries, values in TOML's syntax.

    Args:
        overrides: the strings.
        data: what they override, changed in place; None for nothing.

    Raises:
        ConfigError: no '=', or a section that is a value already.
    """
    data = {} if data is None else data
    for override in overrides:
        _override(data, override)
    return data


def config_from_dict(kind: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Build a dataclass from nested dictionaries, checking every key and type.

    Raises:
        ConfigError: naming the key, with a suggestion.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where.rstrip('.') or 'the configuration'} is {data!r:.40}, not a table")
    hints = get_type_hints(kind)
    values = {}
    for key, value in data.items():
        name = f"{where}{key}"
        if key not in hints:
            raise ConfigError(f"unknown key {name!r}{suggestion(key, list(hints))}")
        values[key] = _convert(name, value, hints[key])
    missing = [
        field.name
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where.rstrip('.') or kind.__name__} lacks {', '.join(missing)}: give it a value")
    return kind(**values)


def suggestion(name: str, known: Sequence[str]) -> str:
    """``: did you mean 'x'?`` where something is close, otherwise the list of what there is."""
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]!r}?" if close else f": choose one of {', '.join(known)}"


def _convert(name: str, value: Any, hint: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise ConfigError(f"{name} is {value}, beyond TOML's 64 bits, {LARGEST}: write a smaller number")
    if isinstance(value, str) and "\0" in value:
        raise ConfigError(f"{name} is {value!r:.40}: no text holds a zero byte")
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return config_from_dict(hint, value, f"{name}.")
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{name} is {value!r}{suggestion(str(value), [str(a) for a in arguments])}")
        return value
    if origin in (Union, types.UnionType):
        others = [kind for kind in arguments if kind is not types.NoneType]
        if len(others) < len(arguments) and len(others) == 1:
            return None if value is None else _convert(name, value, others[0])
        if isinstance(value, arguments) and not isinstance(value, bool):
            return value
        raise ConfigError(f"{name} is {value!r}; it must be {' or '.join(a.__name__ for a in arguments)}")
    if origin is tuple:
        return _tuple(name, value, arguments)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} is {value!r}, not a table")
        return {
            key: _convert(f"{name}.{key if key.isprintable() else repr(key)}", item, arguments[1])
            for key, item in value.items()
        }
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{name} is {value!r}, a {type(value).__name__}; it must be a {hint.__name__}")
    return value


def _tuple(name: str, value: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{name} is {value!r}, not a list")
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise ConfigError(f"{name} is {value!r}, {len(value)} values; it needs {len(arguments)}")
    pairs = zip(value, arguments, strict=True)
    return tuple(_convert(f"{name}[{i}]", item, hint) for i, (item, hint) in enumerate(pairs))


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"override {override!r} has no '=': write section.key=value")
    try:
        value = parse_toml(f"value = {text}")["value"]
    except ValueError:
        value = text.strip()  # a bare word is a string
    *sections, last = key.strip().split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise ConfigError(f"override {override!r}: {section} is not a table")
    data[last] = value
