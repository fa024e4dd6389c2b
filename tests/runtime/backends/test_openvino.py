"""The openvino backend: what it computes, in which precision, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from planes import infer_planes

from tfswa.runtime.backends import BackendOptions, open_session
from tfswa.runtime.errors import BackendUnavailable, BundleError, UsageError
from tfswa.runtime.machine import int8_instructions
from tfswa.runtime.metrics import snr_db
from tfswa.runtime.model.opening import BundleModel, open_model
from tfswa.runtime.model.spec import ModelSpec

openvino = pytest.importorskip("openvino", reason="openvino is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: export makes the graph")

from tfswa.runtime.backends import openvino as openvino_backend  # noqa: E402
from tfswa.runtime.backends.openvino import OpenvinoSession, cache_folder  # noqa: E402

FULL_GATE_DB = 90.0  # rounding alone
LOW_GATE_DB = 36.0  # eight bits of mantissa; parity's gate
BF16 = "BF16" in openvino_backend.process_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_int8 = pytest.mark.skipif(
    int8_instructions() == "saturating", reason="this CPU has neither VNNI nor AMX"
)
needs_bf16 = pytest.mark.skipif(not BF16, reason="this CPU has no bfloat16")


def planes(spec: ModelSpec, batch: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(batch).standard_normal(spec.input_shape(batch)).astype(np.float32)


def near(one: Any, two: Any, gate_db: float) -> bool:
    value = snr_db(one, two)
    return value is not None and value >= gate_db


def test_it_gives_what_onnxruntime_gives_in_any_batch(exported: BundleModel) -> None:
    session = open_session("openvino", exported, BackendOptions(threads=1))
    reference = open_session("ort", exported, BackendOptions(threads=1))
    for batch in (1, 3, 2, 1):  # grown once, then filled up
        mixture = planes(exported.spec, batch)
        out = infer_planes(session, mixture)
        assert (out.shape, out.dtype) == (exported.spec.output_shape(batch), np.float32)
        assert near(infer_planes(reference, mixture), out, FULL_GATE_DB)
    assert session.artifact == ("model.onnx", exported.bundle.files["model.onnx"].sha256)
    assert session.versions == {"openvino": openvino.__version__}
    assert session.description.endswith("fp32 on cpu")
    session.close()
    session.close()


def test_int8_is_bound_to_the_processors_instructions(
    exported: BundleModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = exported.file("model.onnx").read_bytes()
    exported.bundle.add("model.int8.onnx", graph, kind="onnx", precision="int8", details={"plan": []})
    model = open_model(exported.name)
    monkeypatch.setattr(openvino_backend, "int8_instructions", lambda: "avx_vnni")
    session = OpenvinoSession(model, BackendOptions(precision="int8"))
    assert session.versions == {"openvino": openvino.__version__, "int8 by": "avx_vnni"}
    session.close()
    monkeypatch.setattr(openvino_backend, "int8_instructions", lambda: "saturating")
    with pytest.raises(
        BackendUnavailable, match=r"int8 asked for, .* neither VNNI nor AMX.* --precision fp32"
    ):
        OpenvinoSession(model, BackendOptions(precision="int8"))
    OpenvinoSession(model, BackendOptions(precision="fp32")).close()


@needs_int8
@needs_bf16
def test_a_plan_with_two_precisions_beside_int8_is_refused_in_mixed(exported: BundleModel) -> None:
    graph = exported.file("model.onnx").read_bytes()
    for plan in ([], ["encoder.0", "head"]):
        exported.bundle.add("model.int8.onnx", graph, kind="onnx", precision="int8", details={"plan": plan})
        model = open_model(exported.name)
        OpenvinoSession(model, BackendOptions(precision="int8")).close()
        if not plan:
            OpenvinoSession(model, BackendOptions(precision="mixed")).close()
            continue
        with pytest.raises(BackendUnavailable, match=r"2 groups .* in fp32, .*: use --precision int8"):
            OpenvinoSession(model, BackendOptions(precision="mixed"))


def test_an_answer_is_the_callers_own(exported: BundleModel) -> None:
    session = OpenvinoSession(exported, BackendOptions(threads=1))
    first = infer_planes(session, planes(exported.spec))
    kept = first.copy()
    infer_planes(session, planes(exported.spec) + 1)
    np.testing.assert_array_equal(first, kept)


def test_an_item_does_not_depend_on_what_fills_the_batch(exported: BundleModel) -> None:
    session = OpenvinoSession(exported, BackendOptions(threads=1))
    three = planes(exported.spec, 3)
    whole = infer_planes(session, three)
    alone = infer_planes(session, three[1:2])
    assert near(whole[1:2], alone, FULL_GATE_DB)


@needs_bf16
def test_bfloat16_is_bfloat16(exported: BundleModel) -> None:
    mixture = planes(exported.spec)
    full = infer_planes(open_session("openvino", exported, BackendOptions()), mixture)
    session = open_session("openvino", exported, BackendOptions(precision="bf16"))
    low = infer_planes(session, mixture)
    assert near(full, low, LOW_GATE_DB)
    assert not near(full, low, FULL_GATE_DB)  # it was rounded
    assert session.artifact[0] == "model.onnx"
    assert "bf16 on cpu" in session.description


def test_a_cache_that_cannot_be_written_costs_time_alone(
    exported: BundleModel, private_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (private_cache / "tfswa").write_text("")
    with caplog.at_level("INFO"):
        OpenvinoSession(exported, BackendOptions()).close()
    assert "compiled anew each time" in caplog.text


def test_what_was_compiled_is_kept_by_its_key(exported: BundleModel, private_cache: Path) -> None:
    for options in (BackendOptions(threads=1), BackendOptions(threads=1), BackendOptions(threads=2)):
        OpenvinoSession(exported, options).close()
    folders = list(cache_folder().iterdir())
    assert cache_folder().is_relative_to(private_cache)
    assert len(folders) == 2
    assert all(list(folder.iterdir()) for folder in folders)


def test_what_was_compiled_is_not_taken_for_other_weights(exported: BundleModel) -> None:
    onnx = pytest.importorskip("onnx")
    before = infer_planes(OpenvinoSession(exported, BackendOptions()), planes(exported.spec))
    graph = onnx.load(exported.file("model.onnx"))
    for tensor in graph.graph.initializer:
        if tensor.name == "head.bias":
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 1, tensor.name))
    data = graph.SerializeToString()
    exported.bundle.add("model.onnx", data, kind="onnx", precision="fp32")
    after = infer_planes(OpenvinoSession(open_model(exported.name), BackendOptions()), planes(exported.spec))
    assert not near(before, after, LOW_GATE_DB)


@pytest.mark.parametrize("precision", ["fp16", "int4", "FP32"])
def test_another_precision_is_refused(exported: BundleModel, precision: str) -> None:
    with pytest.raises(UsageError, match=rf"no precision '{precision}': choose fp32, bf16, int8, mixed"):
        OpenvinoSession(exported, BackendOptions(precision=precision))


@pytest.mark.parametrize("device", ["cuda", "gpu", "cuda:1"])
def test_another_device_is_refused(exported: BundleModel, device: str) -> None:
    with pytest.raises(BackendUnavailable, match=rf"device {device} asked for, .* use --device cpu") as error:
        OpenvinoSession(exported, BackendOptions(device=device))
    assert error.value.exit_code == 4


def test_a_cpu_without_bfloat16_is_not_taken_in_silence(
    exported: BundleModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    able = SimpleNamespace(get_property=lambda device, name: ["FP32", "INT8"])
    monkeypatch.setattr(openvino_backend, "process_core", lambda: able)
    with pytest.raises(BackendUnavailable, match=r"bf16 asked for, this CPU has FP32, INT8: .*fp32"):
        OpenvinoSession(exported, BackendOptions(precision="bf16"))


def test_a_precision_that_openvino_changes_is_an_error(
    exported: BundleModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = OpenvinoSession._settings

    def other(self: OpenvinoSession) -> dict[str, Any]:
        return {**settings(self), "INFERENCE_PRECISION_HINT": "f32"}

    monkeypatch.setattr(OpenvinoSession, "_settings", other)
    monkeypatch.setattr("tfswa.runtime.backends.openvino._check_device", lambda *_: None)
    with pytest.raises(BackendUnavailable, match="bf16 asked for, openvino computes in f32"):
        OpenvinoSession(exported, BackendOptions(precision="bf16"))


def test_a_file_that_is_no_graph_is_refused_in_one_line(exported: BundleModel) -> None:
    exported.bundle.add("model.onnx", b"nonsense", kind="onnx", precision="fp32")
    with pytest.raises(BundleError, match=r"model\.onnx is not an ONNX file, or damaged: ") as error:
        OpenvinoSession(open_model(exported.name), BackendOptions())
    assert "\n" not in str(error.value)


def test_without_openvino_the_extra_is_named(exported: BundleModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'tfswa\[openvino\]'"):
        OpenvinoSession(exported, BackendOptions())


PLACES = 200 if os.environ.get("TFX_LONG") else 20


def test_one_flipped_byte_of_what_was_compiled_is_compiled_again(
    exported: BundleModel, caplog: pytest.LogCaptureFixture
) -> None:
    options = BackendOptions(threads=1)
    mixture = planes(exported.spec)
    first = infer_planes(OpenvinoSession(exported, options), mixture)
    (folder,) = cache_folder().iterdir()
    random = np.random.default_rng(0)
    for _ in range(PLACES):
        (blob,) = folder.glob("*.blob")
        whole = bytearray(blob.read_bytes())
        whole[int(random.integers(len(whole)))] ^= 1 << int(random.integers(8))
        blob.write_bytes(whole)
        caplog.clear()
        assert near(first, infer_planes(OpenvinoSession(exported, options), mixture), FULL_GATE_DB)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "is damaged: compiled again" in caplog.text
    caplog.clear()
    OpenvinoSession(exported, options).close()
    assert not caplog.records


GIVEN_BACK_IN_A_THREAD = """
import gc, signal, sys, threading
from pathlib import Path
from tfswa.runtime.backends import BackendOptions, open_session
from tfswa.runtime.model.opening import open_model

sessions = [open_session("openvino", open_model(Path(sys.argv[1])), BackendOptions(threads=1)) for _ in "ab"]

def give_back():
    while sessions:
        sessions.pop(0).close()
    gc.collect()

thread = threading.Thread(target=give_back)
thread.start()
thread.join()
signal.signal(signal.SIGINT, lambda number, frame: print("told"))
signal.raise_signal(signal.SIGINT)
"""


def test_a_signal_after_the_last_session_reaches_its_handler(exported: BundleModel) -> None:
    """OpenVINO's plug-in would have freed the memory that signals of the main thread are handled on."""
    command = [sys.executable, "-c", GIVEN_BACK_IN_A_THREAD, str(exported.name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (0, "told\n", "")
