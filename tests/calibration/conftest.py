"""A tiny network exported once; every test here runs its graph."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tfswa.runtime.models import BundleModel, open_model
from tfswa.runtime.spec import ChunkSpec, StftSpec

HYPER = {"dims": (8, 16), "depths": (1, 1), "decoder_depths": (1,), "heads": (1, 2), "window": 4, "fold": 4}


@pytest.fixture(scope="session")
def exported_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kinds of blocks, untrained, with model.onnx; read only."""
    for package in ("torch", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: calibration needs it")
    from tfswa.export.onnx import export_onnx
    from tfswa.train.backend import new_bundle

    path = tmp_path_factory.mktemp("exported") / "tiny.tfx"
    stft = StftSpec(n_fft=512, hop=128, sample_rate=8000)
    chunk = ChunkSpec(frames=16, context=2, fade=2, multiple=8)
    new_bundle("tfswa_lite", path, seed=5, hyper=HYPER, stft=stft, chunk=chunk)
    export_onnx(open_model(path))
    return path


@pytest.fixture
def exported(exported_bundle: Path, tmp_path: Path) -> BundleModel:
    """One of one's own."""
    shutil.copytree(exported_bundle, tmp_path / "mine.tfx")
    model = open_model(tmp_path / "mine.tfx")
    assert isinstance(model, BundleModel)
    return model


@pytest.fixture(scope="session")
def full(exported_bundle: Path) -> Any:
    """The float32 graph, as the exporter makes it; read only."""
    import onnx

    graph = onnx.load(exported_bundle / "model.onnx")
    del graph.metadata_props[:]
    return graph


@pytest.fixture
def traced_once(full: Any) -> Iterator[None]:
    """Every bundle here has the same network, and tracing it takes ten times as long as all the rest."""
    from tfswa.export import onnx as exporter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "build_graph", lambda network, spec, opset: full)
        yield


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder, to tell whether anything changed."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    return read
