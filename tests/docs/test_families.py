"""The page of families, against the families that there are."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: families need it")

from tfswa.train.families import GROUP, get_family, new_spec

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| `(\w+)` \| .* \| ([\d ]+) \| [^|]+ \|$", re.M)


def test_every_family_has_a_row_with_its_parameters() -> None:
    rows = {name: int(count.replace(" ", "")) for name, count in ROW.findall(page())}
    assert rows.keys() == own_families()
    for name, count in rows.items():
        assert new_spec(name, stems=get_family(name).published_stems).parameters == count, name


def page() -> str:
    return (ROOT / "docs" / "families.md").read_text(encoding="utf-8")


def own_families() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["entry-points"][GROUP])
