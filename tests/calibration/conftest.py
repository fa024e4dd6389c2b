"""The graph of the tiny bundle, which every test here runs."""

from __future__ import annotations

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
