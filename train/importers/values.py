"""What a file may say beside its weights: plain values, as few and as small as a configuration has.

A few bytes of a pickle or of YAML can stand for more values than there is memory, or for a number that Python
refuses to print. All that reads such values later relies on these bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_VALUES = 20_000  # with everything that is named twice counted twice
MOST_DEPTH = 20  # of lists and tables in each other
MOST_CHARACTERS = 1000  # of a text, and of a number as it is written
MOST_BITS = 63  # of an integer


def check_values(value: Any) -> None:
    """Refuse what no configuration holds.

    Raises:
        ValueError: too many values, too deep, a text or a number that is too long, or a list within itself.
    """
    _count(value, {}, 0)


def _count(value: Any, known: dict[int, int], depth: int) -> int:
    """How many values one stands for; ``known``: of lists and tables by identity, 0 where not finished."""
    check_scalar(value)
    if not isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return 1
    if id(value) in known and known[id(value)]:
        return known[id(value)]
    if depth > MOST_DEPTH or id(value) in known:
        raise ValueError(f"lists and tables are more than {MOST_DEPTH} deep")
    known[id(value)] = 0
    total = 1
    for one in (*value, *value.values()) if isinstance(value, Mapping) else value:
        total += _count(one, known, depth + 1)
        if total > MOST_VALUES:
            raise ValueError(f"it stands for more than {MOST_VALUES} values")
    known[id(value)] = total
    return total


def check_scalar(value: Any) -> None:
    """Refuse a text or an integer that is too long; anything else is let through.

    Raises:
        ValueError: it is.
    """
    if isinstance(value, (str, bytes)) and len(value) > MOST_CHARACTERS:
        raise ValueError(f"a value of {len(value)} characters, {MOST_CHARACTERS} are read")
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ValueError(f"an integer of {value.bit_length()} bits, {MOST_BITS} are read")


def check_nodes(node: Any) -> None:
    """As ``check_values``, of nodes of YAML of which nothing has been built: merges write aliases out.

    Raises:
        ValueError: as there.
    """
    _count_nodes(node, {}, 0)


def _count_nodes(node: Any, known: dict[int, int], depth: int) -> int:
    if node is None or isinstance(node.value, str):
        check_scalar("" if node is None else node.value)
        return 1
    if id(node) in known and known[id(node)]:
        return known[id(node)]
    if depth > MOST_DEPTH or id(node) in known:
        raise ValueError(f"lists and tables are more than {MOST_DEPTH} deep")
    known[id(node)] = 0
    total = 1
    for item in node.value:  # of a table, pairs
        for one in item if isinstance(item, tuple) else (item,):
            total += _count_nodes(one, known, depth + 1)
        if total > MOST_VALUES:
            raise ValueError(f"it stands for more than {MOST_VALUES} values")
    known[id(node)] = total
    return total
