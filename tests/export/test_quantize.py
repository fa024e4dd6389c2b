"""INT8 in the graph: which layers get Q/DQ pairs, what the pairs hold, who runs them, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planes import infer_planes

onnx = pytest.importorskip("onnx", reason="onnx is not installed: export needs it")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")
pytest.importorskip("torch", reason="torch is not installed: export needs it")

from click.testing import CliRunner  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from tfswa.calibration.ranges import Collector  # noqa: E402
from tfswa.export import cli  # noqa: E402
from tfswa.export import onnx as onnx_export  # noqa: E402
from tfswa.export.check import check_tensors  # noqa: E402
from tfswa.export.onnx import PLAN, export_onnx  # noqa: E402
from tfswa.export.plan import PrecisionPlan  # noqa: E402
from tfswa.export.precision import typed  # noqa: E402
from tfswa.export.quantize import (  # noqa: E402
    CALIBRATION,
    KINDS,
    LEVELS,
    count_quantized,
    item_shapes,
    layers,
    load_ranges,
    quantize_graph,
    weight_scales,
)
from tfswa.runtime.backends import BackendOptions, open_session  # noqa: E402
from tfswa.runtime.backends.openvino import process_core  # noqa: E402
from tfswa.runtime.errors import (  # noqa: E402
    BackendUnavailable,
    BundleError,
    ConfigError,
    ExportError,
    TfxError,
    UsageError,
)
from tfswa.runtime.machine import int8_instructions  # noqa: E402
from tfswa.runtime.metrics import snr_db  # noqa: E402
from tfswa.runtime.model.opening import BundleModel, open_model  # noqa: E402
from tfswa.runtime.model.spec import INPUT  # noqa: E402

INT8_DB = 35.0  # each of 41 layers loses some 50 dB, and random weights add nothing to that
SAME_DB = 90.0  # the same 8-bit numbers, sums in another order
LIKE_DB = 40.0  # the same weights, other roundings between them
SHARED = "encoder.0.blocks.0.window"  # its q, k and v are given the same tensor


@pytest.fixture(scope="module")
def full(exported_bundle: Path) -> Any:
    """The float32 graph; read only."""
    graph = onnx.load(exported_bundle / "model.onnx")
    del graph.metadata_props[:]
    return graph


@pytest.fixture(scope="module")
def ranges(full: Any, exported_bundle: Path) -> dict[str, float]:
    """Of every layer, from generated music."""
    spec = open_model(exported_bundle).spec
    collector = Collector(full, spec)
    for planes in check_tensors(spec)[INPUT]:
        collector.add(planes[None])
    return collector.ranges("minmax")


@pytest.fixture(scope="module", autouse=True)
def _traced_once(full: Any) -> Iterator[None]:
    """Every bundle here has the same network, and tracing it takes ten times as long as all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "build_graph", lambda network, spec, opset: full)
        yield


@pytest.fixture(scope="module")
def calibrated_bundle(
    exported_bundle: Path, ranges: dict[str, float], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The exported one with ranges, model.int8.onnx and model.mixed.onnx; read only."""
    path = tmp_path_factory.mktemp("calibrated") / "calibrated.tfx"
    shutil.copytree(exported_bundle, path)
    keep(open_bundle(path), CALIBRATION, calibration(open_bundle(path), ranges))
    export_onnx(open_model(path), precision="int8")
    export_onnx(open_model(path), precision="mixed")
    return path


@pytest.fixture
def calibrated(calibrated_bundle: Path, tmp_path: Path) -> BundleModel:
    """One of one's own."""
    shutil.copytree(calibrated_bundle, tmp_path / "mine.tfx")
    return open_bundle(tmp_path / "mine.tfx")


def open_bundle(path: Path) -> BundleModel:
    model = open_model(path)
    assert isinstance(model, BundleModel)
    return model


def calibration(model: BundleModel, ranges: dict[str, float]) -> dict[str, Any]:
    return {"source": model.bundle.digest, "ranges": ranges}


def keep(model: BundleModel, name: str, content: Any, **details: Any) -> BundleModel:
    text = content if isinstance(content, str) else json.dumps(content)

    def write(path: Path) -> None:
        path.write_text(text)

    model.bundle.add(name, write, kind="calibration", details=details)
    return open_bundle(model.bundle.path)


def own_plan(model: BundleModel, **content: Any) -> BundleModel:
    """Put a plan into a bundle, as made with the calibration that is there."""
    return keep(model, PLAN, content, calibration=model.bundle.files[CALIBRATION].sha256)


def inferred(graph: Any) -> Any:
    del graph.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True, data_prop=True)


def weights_of(graph: Any) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def makers(graph: Any) -> dict[str, Any]:
    return {name: node for node in graph.graph.node for name in node.output}


def run(graph: Any, feed: dict[str, Any]) -> Any:
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def failure(command: Any, *arguments: Any) -> TfxError:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert isinstance(result.exception, TfxError), result.output
    assert result.stdout == ""
    return result.exception


def rounded_weight(weight: Any, kind: str) -> Any:
    """Weights as a layer in 8 bits has them, in float32."""
    axis, scale = weight_scales(weight, kind)
    scale = scale.reshape([-1 if index == axis else 1 for index in range(weight.ndim)])
    return np.clip(np.rint(weight / scale), -LEVELS, LEVELS) * scale


class TestPlacement:
    def test_only_the_chosen_layers_get_pairs(self, full: Any, ranges: dict[str, float]) -> None:
        names = ["stem/Conv", "up.0/ConvTranspose", f"{SHARED}.out/MatMul"]
        made = quantize_graph(full, ranges, names)
        made_by = makers(made)
        assert count_quantized(made) == 3
        for node in made.graph.node:
            if node.op_type in KINDS:
                given = [made_by[name].op_type for name in node.input[:2] if name in made_by]
                assert (given == ["DequantizeLinear"] * 2) == (node.name in names), node.name
        kinds = Counter(node.op_type for node in made.graph.node)
        assert (kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (3, 6)  # weights are 8 bits already

    def test_none_chosen_is_the_float_graph(self, full: Any, ranges: dict[str, float]) -> None:
        made = quantize_graph(full, ranges, [])
        assert made.graph == full.graph

    def test_what_is_no_layer_is_neither_given_nor_gives_8_bits(self, calibrated_bundle: Path) -> None:
        graph = onnx.load(calibrated_bundle / "model.int8.onnx")
        made_by = makers(graph)
        users = Counter(node.op_type for node in graph.graph.node)
        assert users["LayerNormalization"] > 5
        assert users["Softmax"] > 2
        for node in graph.graph.node:
            given = {made_by[name].op_type for name in node.input if name in made_by}
            if node.op_type not in (*KINDS, "DequantizeLinear"):
                assert "DequantizeLinear" not in given, node.name  # Add, LayerNormalization, Softmax, ...
            if node.op_type == "DequantizeLinear":  # of a weight, or of what was quantized just before
                assert given <= {"QuantizeLinear"}
            if node.op_type == "MatMul" and "DequantizeLinear" not in given:
                assert not set(node.input) & set(weights_of(graph))  # queries by keys: no weights

    def test_every_layer_with_weights_can_be_quantized(self, calibrated_bundle: Path, full: Any) -> None:
        made = onnx.load(calibrated_bundle / "model.int8.onnx")
        count = len([node for node in full.graph.node if set(node.input[1:2]) & set(weights_of(full))])
        whole = [layer.name for layer in layers(full)]
        assert len(whole) == count_quantized(made) > 30
        assert count >= len(whole)
        details = open_bundle(calibrated_bundle).bundle.files["model.int8.onnx"].details
        assert (details["quantized"], details["layers"]) == (len(whole), len(whole))

    def test_q_k_and_v_share_a_pair_of_the_widest_range(self, full: Any, ranges: dict[str, float]) -> None:
        names = [layer.name for layer in layers(full) if layer.name.startswith(f"{SHARED}/")]
        assert len(names) == 3
        wide = {**ranges, names[1]: 7.5}
        made = quantize_graph(full, wide, names)
        made_by = makers(made)
        given = {node.input[0] for node in made.graph.node if node.name in names}
        assert len(given) == 1
        assert sum(node.op_type == "QuantizeLinear" for node in made.graph.node) == 1
        scale = weights_of(made)[made_by[given.pop()].input[1]]
        assert scale == pytest.approx(7.5 / LEVELS)

    def test_what_others_are_given_too_is_theirs_in_float(self, full: Any, ranges: dict[str, float]) -> None:
        made = quantize_graph(full, ranges, ["down.0/Conv"])
        before = {node.name: node for node in full.graph.node}
        after = {node.name: node for node in made.graph.node}
        assert before["down.0/Conv"].input[0] == before["skip.0/Conv"].input[0]
        changed = [name for name, node in before.items() if node.input != after[name].input]
        assert changed == ["down.0/Conv"]

    def test_a_residual_sum_takes_its_input_from_before_the_pair(self) -> None:
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("x", "y")]
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="one/MatMul"),
            helper.make_node("Add", ["a", "x"], ["b"], name="one/Add"),
            helper.make_node("MatMul", ["b", "w"], ["c"], name="two/MatMul"),
            helper.make_node("Add", ["c", "b"], ["y"], name="two/Add"),
        ]
        weight = numpy_helper.from_array(np.eye(4, dtype=np.float32) * np.float32(0.3), "w")
        graph = helper.make_graph(nodes, "toy", ends[:1], ends[1:], [weight])
        toy = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        x = np.array([[0.11, 0.22, 0.33, 1.0]], np.float32)
        for chosen in (["one/MatMul"], ["two/MatMul"], ["one/MatMul", "two/MatMul"]):
            made = inferred(quantize_graph(inferred(toy), {"one/MatMul": 1.0, "two/MatMul": 2.0}, chosen))
            onnx.checker.check_model(made, full_check=True)
            nodes = {node.name: node for node in made.graph.node}
            for name, inputs in (("one/Add", ["a", "x"]), ("two/Add", ["c", "b"])):
                assert list(nodes[name].input) == inputs
            for name in {"one/MatMul", "two/MatMul"} - set(chosen):  # the weight is shared, and float here
                assert list(nodes[name].input) == [{"one": "x", "two": "b"}[name[:3]], "w"]
            found = x
            for name, limit in (("one/MatMul", 1.0), ("two/MatMul", 2.0)):
                scale = limit / LEVELS
                given = np.rint(found / scale) * scale if name in chosen else found
                found = given * np.float32(0.3) + found
            np.testing.assert_allclose(run(made, {"x": x}), found, rtol=1e-6)

    def test_nodes_keep_their_names_and_order(self, calibrated_bundle: Path, full: Any) -> None:
        made = onnx.load(calibrated_bundle / "model.int8.onnx")
        pairs = ("QuantizeLinear", "DequantizeLinear")
        kept = [node.name for node in made.graph.node if node.op_type not in pairs]
        assert kept == [node.name for node in full.graph.node]
        names = [node.name for node in made.graph.node]
        assert len(set(names)) == len(names)

    def test_a_graph_keeps_onnxs_rules_and_no_other_domain(
        self, calibrated_bundle: Path, full: Any, ranges: dict[str, float]
    ) -> None:
        for name in ("model.int8.onnx", "model.mixed.onnx"):
            graph = onnx.load(calibrated_bundle / name)
            onnx.checker.check_model(graph, full_check=True)  # sorted, typed, no duplicates
            assert [entry.domain for entry in graph.opset_import] == [""]
        onnx.checker.check_model(inferred(quantize_graph(full, ranges, ["head/Conv"])), full_check=True)

    def test_what_it_is_given_stays_as_it_was(self, full: Any, ranges: dict[str, float]) -> None:
        before = full.SerializeToString(deterministic=True)
        quantize_graph(full, ranges, ["head/Conv"])
        layers(full)
        assert full.SerializeToString(deterministic=True) == before


class TestNumbers:
    def test_weights_are_symmetric_by_output_channel(self, calibrated_bundle: Path, full: Any) -> None:
        made, right = onnx.load(calibrated_bundle / "model.int8.onnx"), weights_of(full)
        held, made_by = weights_of(made), makers(made)
        found = {node.name: node for node in made.graph.node}
        kinds = set()
        for layer in layers(full):
            pair = made_by[found[layer.name].input[1]]
            levels, scale, zero = (held[name] for name in pair.input)
            weight = right[layer.weight]
            axis = {"Conv": 0, "ConvTranspose": 1, "MatMul": weight.ndim - 1}[layer.kind]
            assert [a.i for a in pair.attribute if a.name == "axis"] == [axis]
            assert scale.shape == zero.shape == (weight.shape[axis],)
            assert (levels.dtype, zero.dtype) == (np.int8, np.int8)
            assert not zero.any()
            assert levels.min() >= -LEVELS
            others = tuple(index for index in range(weight.ndim) if index != axis)
            np.testing.assert_array_equal(np.abs(levels.astype(int)).max(axis=others), LEVELS)
            np.testing.assert_allclose(scale, np.abs(weight).max(axis=others) / LEVELS, rtol=1e-6)
            shape = [-1 if index == axis else 1 for index in range(weight.ndim)]
            real = levels * scale.reshape(shape)
            assert np.abs(real - weight).max() <= scale.max() / 2 * 1.001
            np.testing.assert_allclose(rounded_weight(weight, layer.kind), real, rtol=1e-6, atol=1e-9)
            kinds.add(layer.kind)
        assert kinds == set(KINDS)

    def test_a_channel_of_zeros_stays_zero(self) -> None:
        weight = np.array([[0, 1], [0, -2]], np.float32)
        np.testing.assert_array_equal(rounded_weight(weight, "MatMul")[:, 0], 0)
        assert np.isfinite(rounded_weight(np.zeros((3, 3), np.float32), "Conv")).all()

    def test_activations_have_one_scale_and_no_zero_point(
        self, calibrated_bundle: Path, full: Any, ranges: dict[str, float]
    ) -> None:
        made = onnx.load(calibrated_bundle / "model.int8.onnx")
        held = weights_of(made)
        given = {layer.activation: ranges[layer.name] for layer in layers(full)}
        nodes = [node for node in made.graph.node if node.op_type == "QuantizeLinear"]
        assert {node.input[0] for node in nodes} == set(given)
        for node in nodes:
            scale, zero = (held[name] for name in node.input[1:])
            assert scale.shape == zero.shape == ()
            assert (zero.dtype, int(zero)) == (np.int8, 0)
            assert scale == pytest.approx(given[node.input[0]] / LEVELS)

    def test_biases_stay_float(self, calibrated_bundle: Path, full: Any) -> None:
        graph = onnx.load(calibrated_bundle / "model.int8.onnx")
        held, right = weights_of(graph), weights_of(full)
        nodes = {node.name: node for node in graph.graph.node}
        biased = [node for node in full.graph.node if node.op_type in KINDS and len(node.input) == 3]
        assert len(biased) > 5
        for node in biased:
            assert nodes[node.name].input[2] == node.input[2]
            np.testing.assert_array_equal(held[node.input[2]], right[node.input[2]])
        assert {array.dtype for array in held.values()} <= {
            np.dtype(np.int8),
            np.dtype(np.float32),
            np.dtype(np.int64),
            np.dtype(bool),
        }  # no int32: TensorRT takes no such biases

    def test_a_mixed_graph_has_half_precision_scales(self, calibrated_bundle: Path, full: Any) -> None:
        graph = onnx.load(calibrated_bundle / "model.mixed.onnx")
        held = weights_of(graph)
        pairs = [node for node in graph.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert len(pairs) > 60
        assert {held[node.input[1]].dtype for node in pairs} == {np.dtype(np.float16)}
        kinds = Counter(str(held[node.input[0]].dtype) for node in pairs if node.input[0] in held)
        assert kinds == {"int8": len(layers(full))}
        ends = (*graph.graph.input, *graph.graph.output)
        assert {value.type.tensor_type.elem_type for value in ends} == {TensorProto.FLOAT}

    def test_small_weights_and_activations_are_not_lost_in_half_precision(
        self, full: Any, ranges: dict[str, float]
    ) -> None:
        """ONNX Runtime takes 1 for a scale that is no normal number of float16: all would be zeros."""
        small = onnx.ModelProto()
        small.CopyFrom(full)
        right: Any = None
        for tensor in small.graph.initializer:
            if tensor.name == "head.weight":
                right = numpy_helper.to_array(tensor).copy()
                right[:3] *= 1e-3 / np.abs(right[:3]).max()
                right[3] = 0
                tensor.CopyFrom(numpy_helper.from_array(right, tensor.name))
        names = {"head/Conv": ranges["head/Conv"], "skip.0/Conv": 1e-3}
        made = quantize_graph(inferred(typed(small, "fp16")), names, list(names))
        held, made_by = weights_of(made), makers(made)
        nodes = {node.name: node for node in made.graph.node}
        levels, scale, _ = (held[name] for name in made_by[nodes["head/Conv"].input[1]].input)
        real = levels * scale.astype(np.float32).reshape(-1, 1, 1, 1)
        assert np.abs(real - right).max(axis=(1, 2, 3))[:3].max() < 1e-4  # half a step of the smallest scale
        assert np.abs(levels[:3]).max() > 5
        assert not levels[3].any()
        scale = held[made_by[nodes["skip.0/Conv"].input[0]].input[1]]
        assert np.finfo(np.float16).tiny <= scale < 2e-4

    def test_8_bits_are_a_quarter_of_the_bytes(self, calibrated_bundle: Path) -> None:
        def layers_bytes(name: str) -> int:
            graph = onnx.load(calibrated_bundle / name)
            return sum(array.nbytes for array in weights_of(graph).values() if array.ndim > 1)

        assert layers_bytes("model.int8.onnx") < 0.5 * layers_bytes("model.onnx")  # the rest: window masks


class TestLayers:
    def test_products_are_those_of_one_chunk(self, full: Any, exported_bundle: Path) -> None:
        frames, bins = open_model(exported_bundle).spec.input_shape(1)[2:]
        found = {layer.name: layer for layer in layers(full)}
        positions = frames * bins // 4  # four bins are folded into channels
        channels = [found[f"encoder.{level}.conv.second/Conv"] for level in (0, 1)]
        assert channels[0].macs == positions * 8 * 8 * 9
        assert channels[1].macs == positions // 4 * 16 * 16 * 9
        # Windows and bands are folded into the batch: a product is none the less one of the chunk's.
        for name in (f"{SHARED}/MatMul", f"{SHARED}.out/MatMul"):
            assert found[name].macs == positions * 8 * 8, name
        for name in ("encoder.1.blocks.0.time/MatMul", "encoder.1.blocks.0.frequency.out/MatMul"):
            assert found[name].macs == positions // 4 * 16 * 16, name
        assert found["encoder.1.blocks.0.time_mlp.expand/MatMul"].macs == positions // 4 * 16 * 32
        transposed = found["up.0/ConvTranspose"]
        assert transposed.macs == positions // 4 * 16 * 8 * 4  # 2 x 2 for each position below

    def test_shapes_are_those_that_onnxruntime_gives(self, full: Any, exported_bundle: Path) -> None:
        shapes = item_shapes(full)
        wanted = sorted({layer.activation for layer in layers(full)})
        graph = onnx.ModelProto()
        graph.CopyFrom(full)
        graph.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in wanted)
        session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        zeros = np.zeros(open_model(exported_bundle).spec.input_shape(1), np.float32)
        for name, array in zip(wanted, session.run(wanted, {"mixture": zeros}), strict=True):
            assert shapes[name] == list(array.shape)

    def test_products_of_two_activations_are_no_layers(self, full: Any) -> None:
        names = {layer.name for layer in layers(full)}
        assert f"{SHARED}/MatMul" in names
        scores = [node for node in full.graph.node if node.op_type == "MatMul" and node.name not in names]
        assert len(scores) == 10  # queries by keys, and what of the values: two in each of five attentions


class TestRunning:
    def test_it_was_compared_with_eager(self, calibrated_bundle: Path) -> None:
        files = open_bundle(calibrated_bundle).bundle.files
        for precision in ("int8", "mixed"):
            entry = files[f"model.{precision}.onnx"]
            assert (entry.kind, entry.precision) == ("onnx", precision)
            assert min(entry.details["snr_db"].values()) > INT8_DB
            assert max(entry.details["snr_db"].values()) < 70  # it was rounded to 8 bits
        assert "peak" in files["model.mixed.onnx"].details

    def test_onnxruntime_and_openvino_lose_the_same(self, calibrated: BundleModel) -> None:
        """On x86 ONNX Runtime computes Q/DQ pairs as they stand, in float32; OpenVINO adds in integers.

        Their inputs of a layer differ by rounding, which tips what lies between two 8-bit numbers; what was
        tipped tips others further on. So after many layers only the losses are alike: two independent
        roundings of a network differ from each other by the sum of their losses, 3 dB more than one of them.
        """
        pytest.importorskip("openvino", reason="openvino is not installed")
        planes = check_tensors(calibrated.spec)[INPUT]

        def infer(backend: str, precision: str) -> Any:
            with closing(open_session(backend, calibrated, BackendOptions(precision, threads=1))) as session:
                assert session.artifact[0] == ("model.onnx" if precision == "fp32" else "model.int8.onnx")
                return infer_planes(session, planes)

        if int8_instructions() == "saturating":
            with pytest.raises(BackendUnavailable, match="neither VNNI nor AMX"):
                infer("openvino", "int8")
            return
        reference, one, two = infer("ort", "fp32"), infer("ort", "int8"), infer("openvino", "int8")
        lost = snr_db(reference, one) or 0
        assert INT8_DB < lost < 70
        assert abs((snr_db(reference, two) or 0) - lost) < 3
        assert (snr_db(one, two) or 0) > lost - 3
        if "BF16" in process_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            assert LIKE_DB < (snr_db(one, infer("openvino", "mixed")) or 0) < SAME_DB

    @pytest.mark.parametrize(
        "layer", ["stem/Conv", "skip.0/Conv", "up.0/ConvTranspose", "time_mlp.expand/MatMul"]
    )
    def test_onnxruntime_and_openvino_round_a_layer_alike(
        self, full: Any, ranges: dict[str, float], exported: BundleModel, layer: str
    ) -> None:
        """Integers add up exactly: a layer differs where its input lies between two 8-bit numbers, if at all.

        Inputs differ by the rounding of float32 in the layers before, below 1e-5 of a range of 127 steps: at
        most one value in 500 is tipped, by a whole step. Its square is 12 times the mean square of rounding.
        """
        pytest.importorskip("openvino", reason="openvino is not installed")
        if int8_instructions() == "saturating":
            pytest.skip("this CPU has neither VNNI nor AMX: openvino's sums of 8-bit products saturate")
        (name,) = [found.name for found in layers(full) if found.name.endswith(layer)][:1]
        planes = check_tensors(exported.spec)[INPUT]
        graph = quantize_graph(full, ranges, [name])
        core = process_core()
        network = core.read_model(graph.SerializeToString())
        network.reshape({network.inputs[0]: list(planes.shape)})
        compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found, right = compiled([planes])[0], run(graph, {"mixture": planes})
        lost = snr_db(run(full, {"mixture": planes}), right) or 0
        assert (snr_db(right, found) or 999) > lost + 16  # 12 / 500

    def test_onnxruntime_runs_the_mixed_graph(self, calibrated: BundleModel) -> None:
        planes = check_tensors(calibrated.spec)[INPUT]
        found = {}
        for precision in ("fp32", "int8", "mixed"):
            with closing(open_session("ort", calibrated, BackendOptions(precision=precision))) as session:
                found[precision] = infer_planes(session, planes)
        assert (snr_db(found["fp32"], found["mixed"]) or 0) > INT8_DB
        assert LIKE_DB < (snr_db(found["int8"], found["mixed"]) or 0) < SAME_DB

    def test_a_narrow_range_clips(self, full: Any, ranges: dict[str, float], exported: BundleModel) -> None:
        planes = check_tensors(exported.spec)[INPUT][:1]
        right = run(full, {"mixture": planes})
        losses = []
        for factor in (1.0, 0.1):
            made = quantize_graph(full, {**ranges, "head/Conv": factor * ranges["head/Conv"]}, ["head/Conv"])
            losses.append(snr_db(right, run(made, {"mixture": planes})) or 0)
        assert losses[0] > 40
        assert losses[1] < 20

    @pytest.mark.trt
    @pytest.mark.parametrize("precision", ["int8", "mixed"])
    def test_tensorrt_builds_it(self, calibrated: BundleModel, precision: str) -> None:
        pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: engines need it")
        arguments = [calibrated.name, "--precision", precision, "--flavor", "rtx", "--json"]
        result = CliRunner().invoke(cli.build_engine, arguments)
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert report["precision"] == precision
        graph = calibrated.bundle.files[f"model.{precision}.onnx"]
        assert report["onnx_sha256"] == graph.sha256
        assert Path(report["file"]).stat().st_size == report["bytes"] > 1000

    @pytest.mark.trt
    def test_a_float_graph_is_not_built_as_int8(self, calibrated: BundleModel) -> None:
        pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: engines need it")
        data = calibrated.file("model.onnx").read_bytes()

        def write(path: Path) -> None:
            path.write_bytes(data)

        calibrated.bundle.add("model.int8.onnx", write, kind="onnx", precision="int8")
        error = failure(cli.build_engine, calibrated.name, "--precision", "int8", "--flavor", "rtx")
        assert "is recorded as int8, nothing in it is quantized: export it again" in str(error)


class TestPlans:
    def test_a_plan_names_the_layers(self, calibrated: BundleModel) -> None:
        plan = PrecisionPlan(int8=("encoder.0.conv", "head"))
        made = export_onnx(calibrated, precision="int8", plan=plan, force=True)
        assert (made.details["quantized"], made.details["layers"]) == (3, 41)
        graph = onnx.load(made.file)
        made_by = makers(graph)
        for node in graph.graph.node:
            if node.op_type in KINDS:
                chosen = node.name.startswith(("encoder.0.conv.", "head/"))
                kind = made_by.get(node.input[0])
                assert (kind is not None and kind.op_type == "DequantizeLinear") == chosen, node.name

    def test_without_a_list_of_its_own_a_plan_quantizes_all_but_what_stays_float32(
        self, calibrated: BundleModel
    ) -> None:
        plan = PrecisionPlan(fp32=("head", "encoder.1.blocks.0.time"))
        for precision in ("int8", "mixed"):
            made = export_onnx(calibrated, precision=precision, plan=plan, force=True)
            assert made.details["quantized"] == 41 - 1 - 4
            nodes = {node.name: node for node in onnx.load(made.file).graph.node}
            assert not nodes["head/Conv"].input[0].endswith("DequantizeLinear_Output")

    def test_the_bundles_own_plan_is_the_default(self, calibrated: BundleModel) -> None:
        model = own_plan(calibrated, int8=["down.0"], source=calibrated.bundle.digest)
        assert export_onnx(model, precision="int8", force=True).details["quantized"] == 1
        everything = PrecisionPlan()
        assert export_onnx(model, precision="int8", plan=everything, force=True).details["quantized"] == 41

    def test_a_mixed_graph_keeps_its_plans_float32(self, calibrated: BundleModel) -> None:
        model = own_plan(calibrated, int8=["down.0"], fp32=["head"])
        made = export_onnx(model, precision="mixed", force=True)
        held = {node.name: node for node in onnx.load(made.file).graph.node}
        weights = weights_of(onnx.load(made.file))
        assert weights[held["head/Conv"].input[1]].dtype == np.float32
        assert weights[held["stem/Conv"].input[1]].dtype == np.float16
        assert made.details["plan"] == ["head"]

    def test_a_plan_of_an_older_calibration_is_refused(
        self, calibrated: BundleModel, ranges: dict[str, float], contents: Callable[[Path], dict[str, bytes]]
    ) -> None:
        model = own_plan(calibrated, int8=["down.0"])
        again = {name: 1.01 * value for name, value in ranges.items()}
        model = keep(model, CALIBRATION, calibration(model, again))
        before = contents(model.bundle.path)
        error = failure(cli.export, model.name, "--precision", "int8", "--force")
        assert isinstance(error, ConfigError)
        assert error.exit_code == 2
        assert f"{PLAN} of {model.bundle.path} was made with another calibration" in str(error)
        assert contents(model.bundle.path) == before
        named = PrecisionPlan(int8=("down.0",))
        assert export_onnx(model, precision="int8", plan=named, force=True).details["quantized"] == 1

    @pytest.mark.parametrize("own", [True, False])
    def test_a_plan_of_another_model_is_refused(
        self, calibrated: BundleModel, tmp_path: Path, own: bool
    ) -> None:
        content = {"int8": ["down.0"], "source": "f" * 64}
        options: tuple[Any, ...] = ()
        if own:
            calibrated = own_plan(calibrated, **content)
        else:
            (tmp_path / "plan.json").write_text(json.dumps(content))
            options = ("--plan", tmp_path / "plan.json")
        error = failure(cli.export, calibrated.name, "--precision", "int8", "--force", *options)
        assert isinstance(error, ConfigError)
        digest = calibrated.bundle.digest
        assert f"was made for the weights {'f' * 12}, these are {digest:.12}" in str(error)

    def test_names_that_are_not_there_are_refused(self, calibrated: BundleModel) -> None:
        with pytest.raises(ConfigError, match=r"has encoder\.9 in int8, the graph has no node of that name"):
            export_onnx(calibrated, precision="int8", plan=PrecisionPlan(int8=("encoder.9",)), force=True)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"int8": "encoder"}', "int8 lists no names"),
            ('{"int8": [1]}', "int8 lists no names"),
            ('{"source": "x"}', "lists no names"),
        ],
    )
    def test_bad_plans(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            PrecisionPlan.load(tmp_path / "plan.json")

    def test_what_was_measured_may_stand_beside(self, tmp_path: Path) -> None:
        content = {"int8": [], "fp32": ["head"], "source": "abc", "measured": {"budget_db": 0.05}}
        (tmp_path / "plan.json").write_text(json.dumps(content))
        plan = PrecisionPlan.load(tmp_path / "plan.json")
        assert plan == PrecisionPlan(("head",), (), "abc")
        assert not plan.quantizes("stem/Conv")


class TestRefusals:
    def test_a_layer_that_is_not_there(self, full: Any, ranges: dict[str, float]) -> None:
        for name in ("nowhere/Conv", "encoder.0.blocks.0.window/Softmax", "head"):
            with pytest.raises(ConfigError, match=f"{name} is to be computed in int8, the graph has no such"):
                quantize_graph(full, ranges, ["head/Conv", name])

    def test_a_layer_without_a_range(self, full: Any) -> None:
        with pytest.raises(ConfigError, match=r"stem/Conv is to be computed in int8, no range of it was"):
            quantize_graph(full, {"head/Conv": 1.0}, ["head/Conv", "stem/Conv"])

    @pytest.mark.parametrize("limit", [float("nan"), float("inf"), 0.0, -1.0])
    def test_a_range_that_is_none(self, full: Any, ranges: dict[str, float], limit: float) -> None:
        tensor = next(layer.activation for layer in layers(full) if layer.name == "head/Conv")
        with pytest.raises(ExportError, match=f"the range of {tensor} is .*: calibrate on other audio"):
            quantize_graph(full, {**ranges, "head/Conv": limit}, ["head/Conv"])

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_weight_that_is_none(self, full: Any, ranges: dict[str, float], value: float) -> None:
        broken = onnx.ModelProto()
        broken.CopyFrom(full)
        for tensor in broken.graph.initializer:
            if tensor.name == "head.weight":
                weight = numpy_helper.to_array(tensor).copy()
                weight[1, 0, 0, 0] = value
                tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
        with pytest.raises(ExportError, match=r"weight head\.weight holds NaN or Inf: train"):
            quantize_graph(broken, ranges, ["head/Conv"])
        assert count_quantized(quantize_graph(broken, ranges, ["stem/Conv"])) == 1

    def test_a_bundle_that_was_not_calibrated(
        self, exported: BundleModel, contents: Callable[[Path], dict[str, bytes]]
    ) -> None:
        before = contents(exported.bundle.path)
        for precision in ("int8", "mixed"):
            error = failure(cli.export, exported.name, "--precision", precision)
            assert (type(error), error.exit_code) == (UsageError, 2)
            assert f"was not calibrated, which int8 needs: `tfx calibrate {exported.name} --audio" in str(
                error
            )
        assert contents(exported.bundle.path) == before

    @pytest.mark.parametrize(
        "content", ["{", "[]", '{"ranges": {}}', '{"source": 1, "ranges": []}', '{"source": 1, "ranges": 2}']
    )
    def test_a_damaged_calibration(self, calibrated: BundleModel, content: str) -> None:
        with pytest.raises(
            BundleError, match=rf"{CALIBRATION} of .*mine\.tfx is damaged .*: calibrate again"
        ):
            load_ranges(keep(calibrated, CALIBRATION, content))

    def test_a_calibration_of_other_weights(self, calibrated: BundleModel) -> None:
        model = keep(calibrated, CALIBRATION, {"source": "e" * 64, "ranges": {}})
        with pytest.raises(BundleError, match=f"is of the weights {'e' * 12}, these are"):
            load_ranges(model)

    def test_a_calibration_that_lacks_a_layer(self, calibrated: BundleModel) -> None:
        ranges = load_ranges(calibrated)
        del ranges["head/Conv"]
        model = keep(calibrated, CALIBRATION, calibration(calibrated, ranges))
        with pytest.raises(ConfigError, match=r"head/Conv is to be computed in int8, no range"):
            export_onnx(model, precision="int8", force=True)

    def test_half_precision_that_holds_no_such_range(self, full: Any, ranges: dict[str, float]) -> None:
        half = inferred(typed(full, "fp16"))
        with pytest.raises(ExportError, match=r"the range of .* is 1e\+06, float16 holds no such number"):
            quantize_graph(half, {**ranges, "head/Conv": 1e6}, ["head/Conv"])
