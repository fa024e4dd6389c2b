"""JSON and TOML that somebody else wrote: every fault is a ValueError."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tfswa.runtime.documents import DEPTH, from_json, parse_json, parse_toml, read_document


@dataclass(frozen=True)
class Row:
    name: str
    level: float | None
    rows: Sequence[int] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def test_what_is_right_is_read() -> None:
    assert parse_json(b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    assert parse_toml("a = [1, {b = 2}]") == {"a": [1, {"b": 2}]}
    assert parse_json("[" * DEPTH + "]" * DEPTH)
    assert from_json(Row, {"name": "a", "level": 1, "rows": [1]}) == Row("a", 1, [1])


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff", b"[" * (DEPTH + 1) + b"]" * (DEPTH + 1), b"[" * 200_000, b"9" * 5000]
)
def test_what_is_no_json_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_json(text)


@pytest.mark.parametrize("text", ["a", "a = " + "[" * 2000, "a = " + "{b = " * 2000, "a." * 5000 + "a = 1"])
def test_what_is_no_toml_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_toml(text)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (3, "Row is 3, not an object"),
        ({"level": 1}, "missing 1 required positional argument: 'name'"),
        ({"name": "a", "level": 1, "more": 2}, "unknown key 'more'"),
        ({"name": 3, "level": 1}, "Row.name is 3"),
        ({"name": "a", "level": True}, "Row.level is True"),
        ({"name": "a", "level": 10**30}, "Row.level is 1000"),
        ({"name": "a", "level": 1, "rows": "abc"}, "Row.rows is 'abc'"),
        ({"name": "a", "level": 1, "rows": [1, None]}, "Row.rows"),
        ({"name": "a", "level": 1, "details": []}, "Row.details is"),
        ({"name": "a" * 10**6, "level": "b" * 10**6}, r"Row.level is 'bbb.{30,40}\.\.\."),
    ],
)
def test_what_is_no_row_is_a_value_error_of_one_short_line(data: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        from_json(Row, data)
    assert len(str(error.value)) < 200
    assert "\n" not in str(error.value)


def test_more_bytes_than_a_text_may_have_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"[1]")
    assert read_document(path) == read_document(path, 3) == b"[1]"
    with pytest.raises(ValueError, match="more than 2 bytes"):
        read_document(path, 2)
    with pytest.raises(ValueError, match="more than 1024 bytes"):
        read_document(Path("/dev/zero"), 1024)  # it has no end
    with pytest.raises(ValueError, match=r".+"):
        parse_toml(b"a = '\xff'")
