"""JSON and TOML that somebody else may have written: every fault of theirs is a ValueError."""

from __future__ import annotations

import dataclasses
import functools
import json
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

DEPTH = 64  # of tables and lists in each other
DOCUMENT_BYTES = 64 << 20  # of a text that is read whole


def read_document(path: Path, limit: int = DOCUMENT_BYTES) -> bytes:
    """Read a file that should be a small text, such as JSON or TOML.

    Raises:
        ValueError: it has more bytes than ``limit``.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit} bytes")
    return content


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is none, no UTF-8, or tables and lists in it are more than ``DEPTH`` deep.
    """
    try:
        return _bounded(json.loads(text))
    except RecursionError:
        raise _too_deep() from None


def parse_toml(text: str | bytes) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        ValueError: it is none, no UTF-8, or tables and lists in it are more than ``DEPTH`` deep.
    """
    try:
        found: dict[str, Any] = _bounded(tomllib.loads(text.decode() if isinstance(text, bytes) else text))
    except RecursionError:
        raise _too_deep() from None
    return found


def from_json(kind: type[T], data: Any, where: str = "") -> T:
    """Build a dataclass of plain fields from a JSON object, every key and every type checked.

    Args:
        kind: the dataclass; sequences and mappings in it are given as they were read.
        data: what was read.
        where: it was read, for messages.

    Raises:
        ValueError: keys that are missing or unknown, or a value of another type.
    """
    name = where or kind.__name__
    if not isinstance(data, Mapping):
        raise ValueError(f"{name} is {_shown(data)}, not an object")
    hints: dict[str, Any] = _hints(kind)  # type: ignore[arg-type]  # a class can be hashed
    unknown = sorted(map(str, data.keys() - hints.keys()))
    if unknown:
        raise ValueError(f"{name} has an unknown key {_shown(unknown[0])}")
    for key, value in data.items():
        if not _fits(value, hints[key]):
            raise ValueError(f"{name}.{key} is {_shown(value)}, which is not what it should be")
    try:
        return kind(**data)
    except TypeError as error:  # a key is missing
        raise ValueError(f"{name}: {error}") from error


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: hint for name, hint in get_type_hints(kind).items() if name in names}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value that JSON gave is of an annotated type."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(item, inner[1]) for item in value.values())
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(_fits(item, inner[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if dataclasses.is_dataclass(hint):  # it was built before
        return isinstance(value, hint)  # type: ignore[arg-type]
    return isinstance(value, hint)


def _bounded(found: Any) -> Any:
    level = [found]
    for _ in range(DEPTH):
        level = [
            item
            for one in level
            if isinstance(one, dict | list)
            for item in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return found
    raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(f"tables and lists in it are more than {DEPTH} deep")


def _shown(value: Any) -> str:
    text = " ".join(repr(value)[:200].split())
    return text if len(text) <= 40 else f"{text[:40]}..."
