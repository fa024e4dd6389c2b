"""The graph of the tiny bundle, which every test here runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def full(exported_bundle: Path) -> Any:
    """The float32 graph, as the exporter makes it; read only."""
    import onnx

    graph = onnx.load(exported_bundle / "model.onnx")
    del graph.metadata_props[:]
    return graph


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder, to tell whether anything changed."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    return read
