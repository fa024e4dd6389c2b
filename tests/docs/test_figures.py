"""No committed table and no committed JSON holds figures of separation that cannot be true together.

An estimate is p + i + a: what filters of its own stem explain, what those of the others add, and the rest, at
right angles to each other. The true stem s is of p's space, so SDR = |s|^2 / (|p - s|^2 + |i|^2 + |a|^2), and
SIR = |p|^2 / |i|^2. With d^2 = 1 / SDR and x = |p - s| / |s|, SIR is at least (1 - x)^2 / (d^2 - x^2),
which is least for x = d^2: SIR >= SDR - 1. The same holds of SAR = |p + i|^2 / |a|^2.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROUNDED_DB = 0.1  # tables have one decimal, of three figures
Row = dict[str, float]


def impossible(row: Mapping[str, float]) -> list[str]:
    """Which of SIR and SAR cannot stand beside the SDR."""
    if "sdr" not in row or row["sdr"] <= ROUNDED_DB:  # SDR - 1 is then nothing that a ratio may not be
        return []
    least = 10 * math.log10(10 ** ((row["sdr"] - ROUNDED_DB) / 10) - 1) - ROUNDED_DB
    return [name for name in ("sir", "sar") if name in row and row[name] < least]


def figure(name: str) -> str | None:
    """``sir`` of ``sir_c_db``, ``SIR c`` or ``SIR dB``; nothing of a name that is another figure's."""
    found = re.fullmatch(r"(sdr|sir|sar)((?:[ _]10s)?(?:[ _]c)?)(?:[ _]db)?", name.lower())
    return found and found[1]


def of_json(value: Any) -> Iterator[Row]:
    """Every object that holds an SDR beside an SIR or an SAR, numbers alone."""
    if isinstance(value, dict):
        for kind in ("_10s", ""):
            names = {figure(key): key for key in value if (kind in key if kind else "_10s" not in key)}
            row = {name: value[key] for name, key in names.items() if name and value[key] is not None}
            if {"sdr"} < names.keys() - {None}:
                yield row
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from of_json(inner)


def of_markdown(text: str) -> Iterator[Row]:
    """Every row of every table that has a column of SDR and one of SIR or SAR."""
    columns: list[str | None] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.lstrip().startswith("|"):
            columns = []
        elif not columns:
            columns = [figure(cell) for cell in cells]
        elif {"sdr"} < set(columns) - {None}:
            numbers = [re.fullmatch(r"-?\d+(\.\d+)?", cell) for cell in cells]
            yield {
                name: float(number[0])
                for name, number in zip(columns, numbers, strict=False)
                if name and number
            }


def test_what_cannot_be_true_is_seen() -> None:
    assert impossible({"sdr": 12.1, "sir": 3.9, "sar": 4.2}) == ["sir", "sar"]
    assert impossible({"sdr": 2.5, "sir": -5.5}) == ["sir"]
    assert impossible({"sdr": 12.1, "sir": 20.3, "sar": 11.9}) == []
    assert impossible({"sdr": -3.0, "sir": -20.0}) == []
    table = (
        "| stem | SDR c | SIR c | SAR c |\n| --- | --- | --- | --- |\n| vocals | 12.1 | 3.9 | not defined |"
    )
    assert list(of_markdown(table)) == [{}, {"sdr": 12.1, "sir": 3.9}]
    held = {"scores": [{"sdr_c_db": 2.5, "sir_c_db": -5.5, "sdr_10s_c_db": 1.0, "sir_10s_c_db": None}]}
    assert list(of_json(held)) == [{"sdr": 1.0}, {"sdr": 2.5, "sir": -5.5}]


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/**/*.json")), ids=lambda path: path.name)
def test_committed_json(path: Path) -> None:
    assert [row for row in of_json(json.loads(path.read_text(encoding="utf-8"))) if impossible(row)] == []


def test_committed_json_holds_such_figures() -> None:
    parity = json.loads((ROOT / "docs" / "measured" / "parity.json").read_text(encoding="utf-8"))
    assert any("sdr" in row for row in of_json(parity))


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))], ids=lambda path: path.name
)
def test_committed_tables(path: Path) -> None:
    assert [row for row in of_markdown(path.read_text(encoding="utf-8")) if impossible(row)] == []
