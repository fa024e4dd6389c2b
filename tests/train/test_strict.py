"""Dictionaries into dataclasses: every key, every type, in one line that says what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfswa.runtime.errors import ConfigError
from tfswa.train.strict import config_from_dict, parse_overrides, read_toml, suggestion


@dataclass(frozen=True)
class Row:
    until: int | str
    frames: int
    width: float = 0.0


@dataclass(frozen=True)
class Section:
    name: str = "x"
    flag: bool = False
    count: int = 1
    rate: float = 0.5
    choice: Literal["red", "green"] = "red"
    pair: tuple[float, float] = (0.0, 1.0)
    mixed: tuple[int, str] = (1, "a")
    sizes: tuple[int, ...] = ()
    length: int | str = 3
    range: tuple[int, int] | None = None
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    free: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Whole:
    part: Section = Section()
    rows: tuple[Row, ...] = ()


def read(**part: Any) -> Section:
    return config_from_dict(Whole, {"part": part}).part


def refused(data: Mapping[str, Any], match: str, kind: type[Any] = Whole) -> None:
    with pytest.raises(ConfigError, match=match) as error:
        config_from_dict(kind, data)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_nothing_gives_the_defaults() -> None:
    assert config_from_dict(Whole, {}) == Whole()
    assert read() == Section()


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("name", "", ""),
        ("flag", True, True),
        ("count", -3, -3),
        ("rate", 2, 2.0),
        ("choice", "green", "green"),
        ("pair", [1, 2.5], (1.0, 2.5)),
        ("pair", (1, 2.5), (1.0, 2.5)),
        ("mixed", [2, "b"], (2, "b")),
        ("sizes", [], ()),
        ("sizes", [3, 2, 1], (3, 2, 1)),
        ("length", 5, 5),
        ("length", "5 epochs", "5 epochs"),
        ("range", None, None),
        ("range", [0, 3], (0, 3)),
        ("words", {"a": ["b", "c"], "d": []}, {"a": ("b", "c"), "d": ()}),
        ("free", {"a": [1, {"b": True}]}, {"a": [1, {"b": True}]}),
    ],
)
def test_values_of_every_type_are_read(key: str, given: Any, expected: Any) -> None:
    value = getattr(read(**{key: given}), key)
    assert value == expected
    assert type(value) is type(expected)


def test_numbers_inside_a_pair_become_floats() -> None:
    assert all(isinstance(value, float) for value in read(pair=[1, 2]).pair)


@pytest.mark.parametrize(
    ("key", "given", "match"),
    [
        ("name", 3, r"^part\.name is 3, a int; it must be a str$"),
        ("flag", 1, r"part\.flag is 1, a int; it must be a bool"),
        ("count", True, r"part\.count is True, a bool; it must be a int"),
        ("count", 1.0, r"part\.count is 1\.0, a float; it must be a int"),
        ("count", None, r"part\.count is None, a NoneType"),
        ("rate", False, r"part\.rate is False, a bool; it must be a float"),
        ("rate", "1", r"part\.rate is '1', a str"),
        ("rate", 10**400, r"part\.rate is 10+, beyond TOML's 64 bits"),
        ("count", -(2**63), r"part\.count is -9223372036854775808, beyond"),
        ("length", 2**70, r"part\.length is .*, beyond"),
        ("choice", "grean", r"part\.choice is 'grean': did you mean 'green'\?"),
        ("choice", "blue", r"part\.choice is 'blue': choose one of red, green"),
        ("choice", 3, r"part\.choice is 3: choose one of red, green"),
        ("choice", ["red"], r"part\.choice is \['red'\]"),
        ("pair", [1.0], r"part\.pair is \[1\.0\], 1 values; it needs 2"),
        ("pair", [1.0, 2.0, 3.0], r"part\.pair is .*, 3 values; it needs 2"),
        ("pair", [], r"part\.pair is \[\], 0 values; it needs 2"),
        ("pair", 1.0, r"part\.pair is 1\.0, not a list"),
        ("pair", [1, "2"], r"part\.pair\[1\] is '2', a str; it must be a float"),
        ("mixed", ["a", 1], r"part\.mixed\[0\] is 'a', a str; it must be a int"),
        ("mixed", [1, 1], r"part\.mixed\[1\] is 1, a int; it must be a str"),
        ("sizes", "12", r"part\.sizes is '12', not a list"),
        ("sizes", {"a": 1}, r"part\.sizes is \{'a': 1\}, not a list"),
        ("sizes", [1, True], r"part\.sizes\[1\] is True"),
        ("length", 2.5, r"part\.length is 2\.5; it must be int or str"),
        ("length", True, r"part\.length is True; it must be int or str"),
        ("length", [3], r"part\.length is \[3\]; it must be int or str"),
        ("range", 3, r"part\.range is 3, not a list"),
        ("range", [1], r"part\.range is \[1\], 1 values; it needs 2"),
        ("words", ["a"], r"part\.words is \['a'\], not a table"),
        ("words", {"a": "b"}, r"part\.words\.a is 'b', not a list"),
        ("words", {"a": ["b", 1]}, r"part\.words\.a\[1\] is 1"),
        ("words", {"a\nb": 1}, r"part\.words\.'a\\nb' is 1, not a list"),
        ("free", 3, r"part\.free is 3, not a table"),
    ],
)
def test_wrong_types(key: str, given: Any, match: str) -> None:
    refused({"part": {key: given}}, match)


def test_a_list_of_tables() -> None:
    rows = config_from_dict(Whole, {"rows": [{"until": 3, "frames": 1}, {"until": "x", "frames": 2}]}).rows
    assert rows == (Row(3, 1), Row("x", 2))


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ({"until": 3}, r"rows is \{'until': 3\}, not a list"),
        ([3], r"rows\[0\] is 3, not a table"),
        ([{"until": 3, "frames": 1}, {"until": 3}], r"^rows\[1\] lacks frames: give it a value$"),
        ([{}], r"rows\[0\] lacks until, frames"),
        ([{"until": 3, "frames": 1, "widht": 2}], r"unknown key 'rows\[0\]\.widht': did you mean 'width'\?"),
        ([{"until": 3, "frames": "1"}], r"rows\[0\]\.frames is '1'"),
    ],
)
def test_wrong_lists_of_tables(rows: Any, match: str) -> None:
    refused({"rows": rows}, match)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({"prat": {}}, r"^unknown key 'prat': did you mean 'part'\?$"),
        ({"zzz": {}}, "^unknown key 'zzz': choose one of part, rows$"),
        ({"part": {"cuont": 3}}, r"unknown key 'part\.cuont': did you mean 'count'"),
        ({"part": {"two\nlines": 3}}, r"unknown key 'part\.two\\nlines'"),
        ({"part": 3}, "part is 3, not a table"),
        ({"part": [1]}, r"part is \[1\], not a table"),
    ],
)
def test_unknown_keys_and_what_is_no_table(data: dict[str, Any], match: str) -> None:
    refused(data, match)


def test_missing_keys_at_the_top_name_the_kind() -> None:
    refused({"until": 3}, "^Row lacks frames: give it a value$", Row)
    refused({}, "^Row lacks until, frames: give it a value$", Row)


def test_did_you_mean() -> None:
    assert suggestion("windw", ["hop", "window"]) == ": did you mean 'window'?"
    assert suggestion("zzz", ["hop", "window"]) == ": choose one of hop, window"


def test_overrides_are_toml_values_and_bare_words_are_strings() -> None:
    overrides = ["a.b=1", "a.c=[1, 2]", "d=x y", "e = true ", "f.g.h={i = 'j=k'}", "k=", "l = a=b "]
    assert parse_overrides(overrides) == {
        "a": {"b": 1, "c": [1, 2]},
        "d": "x y",
        "e": True,
        "f": {"g": {"h": {"i": "j=k"}}},
        "k": "",
        "l": "a=b",
    }


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["a"], r"override 'a' has no '=': write section\.key=value"),
        (["a=1", "a.b=2"], r"override 'a\.b=2': a is not a table"),
        (["a=[1]", "a.0=2"], r"override 'a\.0=2': a is not a table"),
    ],
)
def test_wrong_overrides(overrides: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parse_overrides(overrides)


def test_a_file_and_its_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[part]\nname = "ä"\ncount = 2\n[[rows]]\nuntil = 3\nframes = 4\n', encoding="utf-8")
    data = read_toml(path, ["part.count=5", "part.rate=1", "part.count=6"])
    assert data["part"] == {"name": "ä", "count": 6, "rate": 1}
    assert data["rows"] == [{"until": 3, "frames": 4}]
    assert read_toml(path, ["rows=[]"])["rows"] == []


@pytest.mark.parametrize(
    "content", [b"[part", b"a = ", b"\xff\xfe", b"a = 1\na = 2", b"a = " + 5000 * b"9"], ids=range(5)
)
def test_what_is_not_toml_is_refused_naming_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.toml is not TOML") as error:
        read_toml(path)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.toml"):
        with pytest.raises(ConfigError, match=path.name):
            read_toml(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from([*Section.__dataclass_fields__, "other"])


@given(st.dictionaries(KEYS, JSON, max_size=3), JSON)
def test_anything_at_all_is_read_or_refused_in_one_line(part: dict[str, Any], rows: Any) -> None:
    problem = None
    try:
        config = config_from_dict(Whole, {"part": part, "rows": rows})
    except ConfigError as error:
        problem = str(error)
    if problem is None:
        assert set(part) <= set(Section.__dataclass_fields__)
        assert all(isinstance(size, int) and not isinstance(size, bool) for size in config.part.sizes)
        assert len(config.part.pair) == 2
    else:
        assert len(problem.splitlines()) == 1
