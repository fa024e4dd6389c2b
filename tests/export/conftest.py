"""A tiny bundle exported once; tests that write copy it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tfswa.runtime.bundle import MANIFEST
from tfswa.runtime.models import BundleModel, open_model
from tfswa.runtime.spec import ChunkSpec, StftSpec

HYPER = {"dims": (8, 16), "depths": (1, 1), "decoder_depths": (1,), "heads": (1, 2), "window": 4, "fold": 4}


@pytest.fixture(scope="session")
def plain_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in float16, all kinds of blocks, shifted and unshifted; read only."""
    pytest.importorskip("torch", reason="torch is not installed: export needs it")
    from tfswa.train.backend import new_bundle

    path = tmp_path_factory.mktemp("plain") / "plain.tfx"
    stft = StftSpec(n_fft=512, hop=128, sample_rate=8000)
    chunk = ChunkSpec(frames=16, context=2, fade=2, multiple=8)
    new_bundle("tfswa_lite", path, seed=5, hyper=HYPER, stft=stft, chunk=chunk, precision="fp16")
    return path


@pytest.fixture(scope="session")
def exported_bundle(plain_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with model.onnx and model.ts; read only."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: export to ONNX needs it")
    from tfswa.export.onnx import export_onnx
    from tfswa.export.torchscript import export_torchscript

    path = tmp_path_factory.mktemp("exported") / "exported.tfx"
    shutil.copytree(plain_bundle, path)
    export_onnx(open_model(path))
    export_torchscript(open_model(path))
    return path


@pytest.fixture(scope="session")
def low_bundle(exported_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with model.fp16.onnx and model.bf16.onnx; read only."""
    from tfswa.export.onnx import export_onnx

    path = tmp_path_factory.mktemp("low") / "low.tfx"
    shutil.copytree(exported_bundle, path)
    export_onnx(open_model(path), precision="fp16")
    export_onnx(open_model(path), precision="bf16")
    return path


@pytest.fixture
def low(low_bundle: Path, tmp_path: Path) -> BundleModel:
    """A bundle of one's own, with graphs in fp32, fp16 and bf16."""
    return _copy(low_bundle, tmp_path / "mine" / "low.tfx")


@pytest.fixture
def plain(plain_bundle: Path, tmp_path: Path) -> BundleModel:
    """A bundle of one's own, without artifacts."""
    return _copy(plain_bundle, tmp_path / "mine" / "plain.tfx")


@pytest.fixture
def exported(exported_bundle: Path, tmp_path: Path) -> BundleModel:
    """A bundle of one's own, with model.onnx and model.ts."""
    return _copy(exported_bundle, tmp_path / "mine" / "exported.tfx")


@pytest.fixture
def seal() -> Callable[[BundleModel], BundleModel]:
    """Seal a bundle, as the one inside the package is."""
    from tfswa.runtime import bundle

    def sealed(model: BundleModel) -> BundleModel:
        path = model.bundle.path
        manifest = bundle._read_manifest(path)
        bundle._write_manifest(path, {**manifest, "sealed": True}, bundle._entries(path, manifest))
        return _open(path)

    return sealed


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder, to tell whether anything changed."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    return read


def _copy(source: Path, path: Path) -> BundleModel:
    shutil.copytree(source, path)
    assert (path / MANIFEST).is_file()
    return _open(path)


def _open(path: Path) -> BundleModel:
    model = open_model(path)
    assert isinstance(model, BundleModel)
    return model
