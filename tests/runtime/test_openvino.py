"""The openvino backend: what it computes, in which precision, and what it refuses."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tfswa.runtime.backends import BackendOptions, open_session
from tfswa.runtime.errors import BackendUnavailable, BundleError, UsageError
from tfswa.runtime.metrics import snr_db
from tfswa.runtime.models import BundleModel, open_model
from tfswa.runtime.spec import ChunkSpec, ModelSpec, StftSpec

openvino = pytest.importorskip("openvino", reason="openvino is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: export makes the graph")

from tfswa.runtime.backends.openvino import OpenvinoSession, cache_folder  # noqa: E402

FULL_GATE_DB = 90.0  # rounding alone
LOW_GATE_DB = 36.0  # eight bits of mantissa; parity's gate
HYPER = {"dims": (8, 16), "depths": (1, 1), "decoder_depths": (1,), "heads": (1, 2), "window": 4, "fold": 4}
BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bf16 = pytest.mark.skipif(not BF16, reason="this CPU has no bfloat16")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained network with model.onnx; read only."""
    from tfswa.export.onnx import export_onnx
    from tfswa.train.backend import new_bundle

    path = tmp_path_factory.mktemp("openvino") / "tiny.tfx"
    stft = StftSpec(n_fft=512, hop=128, sample_rate=8000)
    chunk = ChunkSpec(frames=16, context=2, fade=2, multiple=8)
    new_bundle("tfswa_lite", path, seed=5, hyper=HYPER, stft=stft, chunk=chunk)
    export_onnx(open_model(path))
    return path


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> BundleModel:
    shutil.copytree(exported, tmp_path / "mine.tfx")
    opened = open_model(tmp_path / "mine.tfx")
    assert isinstance(opened, BundleModel)
    return opened


def planes(spec: ModelSpec, batch: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(batch).standard_normal(spec.input_shape(batch)).astype(np.float32)


def near(one: Any, two: Any, gate_db: float) -> bool:
    value = snr_db(one, two)
    return value is not None and value >= gate_db


def test_it_gives_what_onnxruntime_gives_in_any_batch(model: BundleModel) -> None:
    session = open_session("openvino", model, BackendOptions(threads=1))
    reference = open_session("ort", model, BackendOptions(threads=1))
    for batch in (1, 3, 2, 1):  # grown once, then filled up
        mixture = planes(model.spec, batch)
        out = session.infer(mixture)
        assert (out.shape, out.dtype) == (model.spec.output_shape(batch), np.float32)
        assert near(reference.infer(mixture), out, FULL_GATE_DB)
    assert session.artifact == ("model.onnx", model.bundle.files["model.onnx"].sha256)
    assert session.versions == {"openvino": openvino.__version__}
    assert session.description.endswith("fp32 on cpu")
    session.close()
    session.close()


def test_an_answer_is_the_callers_own(model: BundleModel) -> None:
    session = OpenvinoSession(model, BackendOptions(threads=1))
    first = session.infer(planes(model.spec))
    kept = first.copy()
    session.infer(planes(model.spec) + 1)
    np.testing.assert_array_equal(first, kept)


def test_an_item_does_not_depend_on_what_fills_the_batch(model: BundleModel) -> None:
    session = OpenvinoSession(model, BackendOptions(threads=1))
    three = planes(model.spec, 3)
    whole = session.infer(three)
    alone = session.infer(three[1:2])
    assert near(whole[1:2], alone, FULL_GATE_DB)


@needs_bf16
def test_bfloat16_is_bfloat16(model: BundleModel) -> None:
    mixture = planes(model.spec)
    full = open_session("openvino", model, BackendOptions()).infer(mixture)
    session = open_session("openvino", model, BackendOptions(precision="bf16"))
    low = session.infer(mixture)
    assert near(full, low, LOW_GATE_DB)
    assert not near(full, low, FULL_GATE_DB)  # it was rounded
    assert session.artifact[0] == "model.onnx"
    assert "bf16 on cpu" in session.description


def test_a_cache_that_cannot_be_written_costs_time_alone(
    model: BundleModel, private_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (private_cache / "tfswa").write_text("")
    with caplog.at_level("INFO"):
        OpenvinoSession(model, BackendOptions()).close()
    assert "compiled anew each time" in caplog.text


def test_what_was_compiled_is_kept_by_its_key(model: BundleModel, private_cache: Path) -> None:
    for options in (BackendOptions(threads=1), BackendOptions(threads=1), BackendOptions(threads=2)):
        OpenvinoSession(model, options).close()
    folders = list(cache_folder().iterdir())
    assert cache_folder().is_relative_to(private_cache)
    assert len(folders) == 2
    assert all(list(folder.iterdir()) for folder in folders)


def test_what_was_compiled_is_not_taken_for_other_weights(model: BundleModel) -> None:
    onnx = pytest.importorskip("onnx")
    before = OpenvinoSession(model, BackendOptions()).infer(planes(model.spec))
    graph = onnx.load(model.file("model.onnx"))
    for tensor in graph.graph.initializer:
        if tensor.name == "head.bias":
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 1, tensor.name))
    data = graph.SerializeToString()
    model.bundle.add("model.onnx", lambda path: _write(path, data), kind="onnx", precision="fp32")
    after = OpenvinoSession(open_model(model.name), BackendOptions()).infer(planes(model.spec))
    assert not near(before, after, LOW_GATE_DB)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


@pytest.mark.parametrize("precision", ["fp16", "int4", "FP32"])
def test_another_precision_is_refused(model: BundleModel, precision: str) -> None:
    with pytest.raises(UsageError, match=rf"no precision '{precision}': choose fp32, bf16, int8, mixed"):
        OpenvinoSession(model, BackendOptions(precision=precision))


@pytest.mark.parametrize("device", ["cuda", "gpu", "cuda:1"])
def test_another_device_is_refused(model: BundleModel, device: str) -> None:
    with pytest.raises(BackendUnavailable, match=rf"device {device} asked for, .* use --device cpu") as error:
        OpenvinoSession(model, BackendOptions(device=device))
    assert error.value.exit_code == 4


def test_a_cpu_without_bfloat16_is_not_taken_in_silence(
    model: BundleModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    able = SimpleNamespace(get_property=lambda device, name: ["FP32", "INT8"])
    monkeypatch.setattr(openvino, "Core", lambda: able)
    with pytest.raises(BackendUnavailable, match=r"bf16 asked for, this CPU has FP32, INT8: .*fp32"):
        OpenvinoSession(model, BackendOptions(precision="bf16"))


def test_a_precision_that_openvino_changes_is_an_error(
    model: BundleModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = OpenvinoSession._settings

    def other(self: OpenvinoSession, batch: int) -> dict[str, Any]:
        return {**settings(self, batch), "INFERENCE_PRECISION_HINT": "f32"}

    monkeypatch.setattr(OpenvinoSession, "_settings", other)
    monkeypatch.setattr("tfswa.runtime.backends.openvino._check_device", lambda *_: None)
    with pytest.raises(BackendUnavailable, match="bf16 asked for, openvino computes in f32"):
        OpenvinoSession(model, BackendOptions(precision="bf16"))


def test_a_file_that_is_no_graph_is_refused_in_one_line(model: BundleModel) -> None:
    model.bundle.add("model.onnx", lambda path: _write(path, b"nonsense"), kind="onnx", precision="fp32")
    with pytest.raises(BundleError, match=r"model\.onnx cannot be loaded by openvino: ") as error:
        OpenvinoSession(open_model(model.name), BackendOptions())
    assert "\n" not in str(error.value)


def test_without_openvino_the_extra_is_named(model: BundleModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'tfswa\[openvino\]'"):
        OpenvinoSession(model, BackendOptions())
