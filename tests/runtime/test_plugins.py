"""Entry points are looked up once, and again where the search path has changed."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from tfswa.runtime import plugins


def bring(folder: Path, group: str) -> Path:
    """A package with one entry point."""
    info = folder / "house_brand-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: house-brand\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{group}]\ngood = house_brand:THING\n")
    return folder


def test_packages_are_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins._all.cache_clear()
    looks = []
    known = metadata.entry_points
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda: looks.append(1) or known())
    for group in ("tfswa.backends", "tfswa.families", "tfswa.backends"):
        assert set(plugins.entry_points(group=group)) == set(known(group=group))
    assert len(looks) == 1
    plugins._all.cache_clear()


def test_a_package_on_a_new_path_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not plugins.entry_points(group="tfswa.of_a_test")
    monkeypatch.syspath_prepend(bring(tmp_path / "möre", "tfswa.of_a_test"))
    assert [point.name for point in plugins.entry_points(group="tfswa.of_a_test")] == ["good"]
