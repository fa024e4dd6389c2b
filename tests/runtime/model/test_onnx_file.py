"""ONNX files are looked at before a library loads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfswa.runtime.backends import BackendOptions, open_session
from tfswa.runtime.errors import BundleError
from tfswa.runtime.model import onnx_file
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import METADATA, BundleModel, embed, open_model

onnx = pytest.importorskip("onnx", reason="onnx is not installed: it makes the files that are read here")


def external(tensor: Any) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def branch(tensor: Any) -> Any:
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    out = make.make_tensor_value_info("y", kind, None)
    return make.make_graph([make.make_node("Constant", [], ["y"], value=tensor)], "branch", [], [out])


def in_initializer(graph: Any, tensor: Any) -> None:
    graph.initializer.append(tensor)


def in_constant(graph: Any, tensor: Any) -> None:
    graph.node.append(onnx.helper.make_node("Constant", [], ["c"], value=tensor))


def in_branch(graph: Any, tensor: Any) -> None:
    inner = branch(tensor)
    graph.node.append(onnx.helper.make_node("If", ["b"], ["y"], then_branch=inner, else_branch=inner))


def in_sparse(graph: Any, tensor: Any) -> None:
    graph.sparse_initializer.add().values.CopyFrom(tensor)


@pytest.mark.parametrize("put", [in_initializer, in_constant, in_branch, in_sparse])
def test_numbers_in_another_file_are_refused_wherever_they_hide(
    put: Callable[[Any, Any], None], tmp_path: Path, tiny_bundle: Bundle
) -> None:
    tensor = onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    put(model.graph, tensor)
    model.metadata_props.add(key=METADATA, value=embed(tiny_bundle.spec, "fp32", ""))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    onnx_file.check_whole(path)
    del model.graph.node[:], model.graph.initializer[:], model.graph.sparse_initializer[:]
    external(tensor)
    put(model.graph, tensor)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="keeps numbers in another file"):
        open_session("ort", open_model(path), BackendOptions())
    tiny_bundle.add("model.onnx", path.read_bytes(), kind="onnx", precision="fp32")
    for backend in ("ort", "openvino"):
        pytest.importorskip({"ort": "onnxruntime"}.get(backend, backend))
        with pytest.raises(BundleError, match="keeps numbers in another file"):
            open_session(backend, BundleModel("tiny", tiny_bundle), BackendOptions())


def field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message that has a length."""
    length, out = len(content), bytearray([number << 3 | 2])
    while length > 127:
        out.append(length & 127 | 128)
        length >>= 7
    return bytes(out) + bytes([length]) + content


def test_graphs_in_graphs_without_end_are_refused(tmp_path: Path) -> None:
    graph = b""
    for _ in range(2000):
        graph = field(1, field(5, field(6, graph)))  # node, attribute, graph
    (tmp_path / "deep.onnx").write_bytes(field(7, graph))
    with pytest.raises(BundleError, match="graphs in graphs, more than 32 deep"):
        onnx_file.check_whole(tmp_path / "deep.onnx")


@pytest.mark.parametrize("zeros", [1, 2, 8])
def test_numbers_of_more_bytes_than_they_need_are_read_alike(zeros: int, tmp_path: Path) -> None:
    """A writer may fill a number up with zeros; one that runs past the end is no number."""

    def long(value: int) -> bytes:
        return bytes([value | 128]) + b"\x80" * (zeros - 1) + b"\0"

    path = tmp_path / "model.onnx"
    node = long(7 << 3 | 2) + long(9) + b"evil.corp"
    path.write_bytes(field(7, long(1 << 3 | 2) + long(len(node)) + node))  # graph, node, domain
    with pytest.raises(BundleError, match=r"custom operators of 'evil\.corp'"):
        onnx_file.check_whole(path)
    for cut in (
        long(7 << 3 | 2)[:-1],
        b"\x3a",
        b"\x3a\x80",
        b"\x3a\x02\x0a",
        b"\x08",
        b"\x08" + b"\x80" * zeros,
    ):
        path.write_bytes(cut)
        with pytest.raises(BundleError, match="runs past the end"):
            onnx_file.check_whole(path)


@pytest.mark.parametrize("inside", [False, True])
def test_custom_operators_are_refused_wherever_they_hide(
    inside: bool, tmp_path: Path, tiny_bundle: Bundle
) -> None:
    make = onnx.helper
    foreign = make.make_node("Run", [], ["y"], domain="evil.corp")
    out = make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = make.make_graph([foreign], "g", [], [out])
    if inside:
        node = make.make_node("If", ["b"], ["y"], then_branch=graph, else_branch=graph)
        graph = make.make_graph([node], "g", [], [out])
    model = make.make_model(graph)
    model.metadata_props.add(key=METADATA, value=embed(tiny_bundle.spec, "fp32", ""))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    tiny_bundle.add("model.onnx", path.read_bytes(), kind="onnx", precision="fp32")
    for opened in (open_model(path), BundleModel("tiny", tiny_bundle)):
        for backend in ("ort", "openvino"):
            pytest.importorskip({"ort": "onnxruntime"}.get(backend, backend))
            with pytest.raises(BundleError, match=r"custom operators of 'evil\.corp'.*not opened") as error:
                open_session(backend, opened, BackendOptions())
            assert "\n" not in str(error.value)
    body = make.make_function("evil.corp", "Run", [], ["y"], [], [make.make_opsetid("", 20)])
    model.functions.append(body)  # the graph brings it along, made of ONNX's own
    path.write_bytes(model.SerializeToString())
    onnx_file.check_whole(path)


def test_a_file_of_zeros_or_of_countless_fields_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as stream:
        stream.truncate(1 << 31)  # no blocks on the disk
    for look in (open_model, onnx_file.check_whole):
        with pytest.raises(BundleError, match="a field of number 0"):
            look(path)
    path.write_bytes(b"\x78\x00" * (1 << 17))
    with pytest.raises(BundleError, match="more than 65536 fields"):
        open_model(path)


COUNT = 600_000
FLOODS = {  # what takes two bytes each in a graph, and an object in a library
    "nodes": b"\x0a\x00" * COUNT,
    "tensors": b"\x2a\x00" * COUNT,
    "values": b"\x6a\x00" * COUNT,
    "names of a node": field(1, b"\x0a\x00" * COUNT),
    "sizes of a shape": field(13, field(2, field(1, field(2, b"\x0a\x00" * COUNT)))),
    "notes of a node": field(1, b"\x4a\x00" * COUNT),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_small_file_of_countless_things_is_refused_before_a_library_makes_objects_of_them(
    tmp_path: Path, flood: str
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(field(7, FLOODS[flood]))
    assert path.stat().st_size < 1 << 21
    with pytest.raises(BundleError, match="more than 524288 fields"):
        onnx_file.check_whole(path)


def test_a_graph_of_ours_has_few_of_these(monkeypatch: pytest.MonkeyPatch) -> None:
    """27,000 fields in the embedded one: a network twenty times as deep is let through."""
    monkeypatch.setattr(onnx_file, "FIELDS", onnx_file.FIELDS // 16)
    onnx_file.check_whole(Path(onnx_file.__file__).parents[1] / "demo.tfx" / "model.onnx")
