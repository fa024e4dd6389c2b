"""The TorchScript file: what it carries, any batch, any device."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planes import infer_planes

torch = pytest.importorskip("torch", reason="torch is not installed: export needs it")

from tfswa.export.torchscript import export_torchscript  # noqa: E402
from tfswa.runtime.backends import BackendOptions  # noqa: E402
from tfswa.runtime.backends.torchscript import TorchScriptSession  # noqa: E402
from tfswa.runtime.errors import OutputExists  # noqa: E402
from tfswa.runtime.gates import gate_for  # noqa: E402
from tfswa.runtime.metrics import snr_db  # noqa: E402
from tfswa.runtime.model.opening import BundleModel, FileModel, open_model  # noqa: E402
from tfswa.train.backend import TorchSession  # noqa: E402

RUNTIME_GATE_DB = 90.0  # the same kernels on the same weights: rounding at most


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_torchscript_gives_what_eager_gives(exported: BundleModel, batch: int) -> None:
    planes = np.random.default_rng(batch).standard_normal(exported.spec.input_shape(batch), np.float32)
    eager = infer_planes(TorchSession(exported, BackendOptions()), planes)
    session = TorchScriptSession(exported, BackendOptions())
    out = infer_planes(session, planes)
    assert out.shape == exported.spec.output_shape(batch)
    value = snr_db(eager, out)
    assert value is not None
    assert value >= RUNTIME_GATE_DB


def test_the_file_alone_is_a_model(exported: BundleModel) -> None:
    file = open_model(exported.bundle.path / "model.ts")
    assert isinstance(file, FileModel)
    assert (file.kind, file.precision, file.spec) == ("torchscript", "fp32", exported.spec)
    assert exported.bundle.files["model.ts"].details["torch"] == torch.__version__


def test_no_device_is_baked_in(exported_bundle: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit as a whole
        graph: Any = torch.jit.load(str(exported_bundle / "model.ts")).graph
    constants = graph.findAllNodes("prim::Constant")
    assert not [node for node in constants if node.output().type().kind() == "DeviceObjType"]
    assert graph.findNode("prim::device") is not None


@pytest.mark.gpu
def test_it_runs_on_a_gpu(exported: BundleModel) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    planes = np.random.default_rng(0).standard_normal(exported.spec.input_shape(2), np.float32)
    eager = infer_planes(TorchSession(exported, BackendOptions()), planes)
    session = TorchScriptSession(exported, BackendOptions(device="cuda"))
    value = snr_db(eager, infer_planes(session, planes))
    assert value is not None
    assert value >= gate_for("fp32").snr_db


def test_an_existing_artifact_needs_force(exported: BundleModel) -> None:
    with pytest.raises(OutputExists, match="--force"):
        export_torchscript(exported)
