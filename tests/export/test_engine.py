"""Engines: what is built, under which key, and every reason not to build one."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: export needs it")

from tfswa.export.engine import PORTABLE, build_engine  # noqa: E402
from tfswa.runtime.bundle import Bundle  # noqa: E402
from tfswa.runtime.errors import BackendUnavailable, BundleError, ExportError, UsageError  # noqa: E402
from tfswa.runtime.models import BundleModel, open_model  # noqa: E402


@pytest.fixture
def trt() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: engines need it")


@pytest.fixture
def replace_onnx(exported: BundleModel) -> Callable[..., BundleModel]:
    """Put another graph into a bundle, recorded as fp32."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: it makes the graph")

    def put(*nodes: Any) -> BundleModel:
        spec, kind = exported.spec, onnx.TensorProto.FLOAT
        mixture = onnx.helper.make_tensor_value_info("mixture", kind, ["batch", *spec.input_shape(1)[1:]])
        stems = onnx.helper.make_tensor_value_info("stems", kind, None)
        graph = onnx.helper.make_graph(nodes, "g", [mixture], [stems])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        data = model.SerializeToString()
        exported.bundle.add("model.onnx", lambda p: open_and_write(p, data), kind="onnx", precision="fp32")
        return exported

    return put


def open_and_write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def node(kind: str, source: str, target: str, **attributes: Any) -> Any:
    import onnx

    return onnx.helper.make_node(kind, [source], [target], name=f"node_{target}", **attributes)


@pytest.mark.trt
def test_an_engine_is_built_recorded_and_found_again(
    trt: Any, exported: BundleModel, capfd: pytest.CaptureFixture[str]
) -> None:
    lines: list[str] = []
    made = build_engine(exported, flavor="rtx", report=lines.append)
    assert len(lines) == 1
    assert made.file == exported.bundle.path / "engines" / f"{made.key}.engine"
    assert not made.cached
    assert made.details == {
        "onnx_sha256": exported.bundle.files["model.onnx"].sha256,
        "flavor": "rtx",
        "version": trt.__version__,
        "precision": "fp32",
        "batch": [1, 1, 1],
        "target": PORTABLE,
    }
    text = json.dumps(dict(made.details), sort_keys=True)
    assert made.key == hashlib.sha256(text.encode()).hexdigest()[:16]
    entry = Bundle.open(exported.bundle.path).files[f"engines/{made.key}.engine"]
    assert (entry.kind, entry.precision, dict(entry.details)) == ("engine", "fp32", made.details)
    written = made.file.stat().st_mtime_ns
    again = build_engine(open_model(exported.name), flavor="rtx", report=lines.append)
    assert (again.cached, again.key, again.file) == (True, made.key, made.file)
    assert made.file.stat().st_mtime_ns == written
    assert len(lines) == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.trt
def test_another_batch_is_another_engine_and_force_builds_again(trt: Any, exported: BundleModel) -> None:
    one = build_engine(exported, flavor="rtx")
    four = build_engine(exported, flavor="auto", batch=(1, 2, 4))
    assert four.key != one.key
    assert four.details["batch"] == [1, 2, 4]
    assert {entry.kind for name, entry in exported.bundle.files.items() if "engines/" in name} == {"engine"}
    before = one.file.stat().st_mtime_ns
    forced = build_engine(exported, flavor="rtx", force=True)
    assert (forced.key, forced.cached) == (one.key, False)
    assert one.file.stat().st_mtime_ns != before


@pytest.mark.trt
def test_a_damaged_engine_is_not_a_cache_hit(trt: Any, exported: BundleModel) -> None:
    made = build_engine(exported, flavor="rtx")
    made.file.write_bytes(made.file.read_bytes()[:-1])
    with pytest.raises(BundleError, match=rf"{made.key}\.engine is damaged"):
        build_engine(exported, flavor="rtx")
    assert build_engine(exported, flavor="rtx", force=True).bytes == made.bytes


@pytest.mark.trt
def test_an_engine_of_a_sealed_bundle_goes_to_the_cache(
    trt: Any, exported: BundleModel, seal: Any, private_cache: Path
) -> None:
    made = build_engine(seal(exported), flavor="rtx")
    assert made.file.is_relative_to(private_cache)


@pytest.mark.trt
def test_a_graph_in_half_precision_is_not_called_fp32(trt: Any, replace_onnx: Any) -> None:
    model = replace_onnx(node("Cast", "mixture", "half", to=10), node("Cast", "half", "stems", to=1))
    with pytest.raises(ExportError, match=r"model\.onnx is recorded as fp32, its layer .* gives HALF"):
        build_engine(model, flavor="rtx")
    assert not (model.bundle.path / "engines").exists()


@pytest.mark.trt
def test_what_the_parser_refuses_is_one_line(trt: Any, replace_onnx: Any) -> None:
    model = replace_onnx(node("Relu", "mixture", "x"), node("NoSuchOperator", "x", "stems"))
    with pytest.raises(
        ExportError, match=r"^model\.onnx is not accepted by tensorrt_rtx: .*NoSuchOperator"
    ) as e:
        build_engine(model, flavor="rtx")
    assert "\n" not in str(e.value)


@pytest.mark.trt
def test_a_truncated_graph_is_named(trt: Any, exported: BundleModel) -> None:
    path = exported.bundle.path / "model.onnx"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BundleError, match=r"model\.onnx is damaged: its SHA-256 is"):
        build_engine(exported, flavor="rtx")


def test_without_a_graph_the_command_that_makes_it_is_named(plain: BundleModel) -> None:
    with pytest.raises(BackendUnavailable, match=r"tfx export .* --format onnx"):
        build_engine(plain)


@pytest.mark.parametrize("batch", [(0, 1, 1), (2, 1, 2), (1, 4, 2)])
def test_batches_out_of_order(exported: BundleModel, batch: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="is not MIN <= OPT <= MAX"):
        build_engine(exported, batch=batch)


def test_a_missing_library_names_its_extra(exported: BundleModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'tfswa\[trt-rtx\]'"):
        build_engine(exported, flavor="rtx")
    with pytest.raises(BackendUnavailable, match=r"flavor tensorrt needs tensorrt .*--flavor rtx"):
        build_engine(exported, flavor="tensorrt")


def test_tensorrt_needs_the_gpu_it_builds_for(exported: BundleModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", type(sys)("tensorrt"))
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "11.0", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailable, match="0 CUDA devices found: use --flavor rtx"):
        build_engine(exported, flavor="tensorrt")


def test_an_exported_file_has_no_bundle(exported: BundleModel) -> None:
    with pytest.raises(UsageError, match="`tfx build-engine` needs a bundle"):
        build_engine(open_model(exported.bundle.path / "model.onnx"))
