"""The tiny bundle in low precision; tests that write copy it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tfswa.runtime.model.bundle import MANIFEST
from tfswa.runtime.model.opening import BundleModel, open_model


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
    from tfswa.runtime.model import bundle

    def sealed(model: BundleModel) -> BundleModel:
        path = model.bundle.path
        manifest = bundle.read_manifest(path)
        bundle.write_manifest(path, {**manifest, "sealed": True}, bundle._entries(path, manifest))
        return _open(path)

    return sealed


def _copy(source: Path, path: Path) -> BundleModel:
    shutil.copytree(source, path)
    assert (path / MANIFEST).is_file()
    return _open(path)


def _open(path: Path) -> BundleModel:
    model = open_model(path)
    assert isinstance(model, BundleModel)
    return model
