"""Typed precision: which tensor is in which type, what a low one rounds, and what is refused."""

from __future__ import annotations

import json
import re
from collections import Counter
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

from tfswa.export import check  # noqa: E402
from tfswa.export.cli import export  # noqa: E402
from tfswa.export.onnx import export_onnx  # noqa: E402
from tfswa.export.plan import PrecisionPlan  # noqa: E402
from tfswa.export.precision import FULL, count_casts, largest, rounded, typed  # noqa: E402
from tfswa.runtime.backends import BackendOptions  # noqa: E402
from tfswa.runtime.backends.ort import OrtSession  # noqa: E402
from tfswa.runtime.errors import ConfigError, ExportError, TfxError, UsageError  # noqa: E402
from tfswa.runtime.gates import gate_for  # noqa: E402
from tfswa.runtime.metrics import snr_db  # noqa: E402
from tfswa.runtime.model.opening import BundleModel, FileModel, open_model  # noqa: E402
from tfswa.runtime.model.spec import INPUT  # noqa: E402
from tfswa.train.backend import load_network  # noqa: E402

CODES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
LAYERS = ("Conv", "ConvTranspose", "MatMul")


def types(graph: Any) -> dict[str, int]:
    found = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.graph.input, *graph.graph.value_info, *graph.graph.output)
    }
    return found | {tensor.name: tensor.data_type for tensor in graph.graph.initializer}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_layer_is_in_the_low_precision_and_no_cast_is_stray(low_bundle: Path, precision: str) -> None:
    graph = onnx.load(low_bundle / f"model.{precision}.onnx")
    found = types(graph)
    layers = [node for node in graph.graph.node if node.op_type in LAYERS]
    assert len(layers) > 20
    full = [node for node in layers if node.op_type in FULL[precision]]
    for node in layers:
        code = TensorProto.FLOAT if node in full else CODES[precision]
        assert {found[name] for name in (*node.input, *node.output)} == {code}, node.name
    assert len(full) == (1 if precision == "bf16" else 0)
    assert count_casts(graph) == 2 + 2 * len(full)
    ends = (*graph.graph.input, *graph.graph.output)
    assert {value.type.tensor_type.elem_type for value in ends} == {TensorProto.FLOAT}
    for node in graph.graph.node:
        if node.op_type in ("Log", "Sqrt", "Sigmoid"):  # features before, mask behind
            assert found[node.output[0]] == TensorProto.FLOAT, node.name
        if node.op_type == "LayerNormalization":  # statistics are float32 by the operator's definition
            assert all(attribute.i == 1 for attribute in node.attribute if attribute.name == "stash_type")


def test_the_operators_are_those_of_float32_and_the_weights_half_the_bytes(low_bundle: Path) -> None:
    full, low = (onnx.load(low_bundle / name) for name in ("model.onnx", "model.fp16.onnx"))
    count = [Counter(node.op_type for node in graph.graph.node) for graph in (full, low)]
    assert count[1] - count[0] == {"Cast": 2}
    assert not count[0] - count[1]
    assert (low_bundle / "model.fp16.onnx").stat().st_size < 0.7 * (low_bundle / "model.onnx").stat().st_size


def test_nodes_are_named_after_the_modules_of_the_network(low_bundle: Path) -> None:
    names = [node.name for node in onnx.load(low_bundle / "model.onnx").graph.node]
    assert len(set(names)) == len(names)
    assert {"encoder.0.conv.first/Conv", "encoder.1.blocks.0.time/Softmax", "head/Conv"} <= set(names)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_the_manifest_says(low_bundle: Path, precision: str) -> None:
    entry = open_model(low_bundle).bundle.files[f"model.{precision}.onnx"]
    assert (entry.kind, entry.precision) == ("onnx", precision)
    assert min(entry.details["snr_db"].values()) > gate_for(precision).snr_db
    assert max(entry.details["snr_db"].values()) < 90  # it was rounded, not computed in float32
    peak = entry.details["peak"]
    assert 0 < peak["value"] < peak["largest"] == largest(precision)
    assert peak["node"] in {
        node.name for node in onnx.load(low_bundle / f"model.{precision}.onnx").graph.node
    }


def test_onnxruntime_runs_fp16(low_bundle: Path) -> None:
    model = open_model(low_bundle)
    planes = check.check_tensors(model.spec)[INPUT]
    full, low = (
        infer_planes(OrtSession(model, BackendOptions(precision=precision)), planes)
        for precision in ("fp32", "fp16")
    )
    value = snr_db(full, low)
    assert value is not None
    assert gate_for("fp16").snr_db < value < 100


def test_a_plan_keeps_modules_in_float32(low_bundle: Path) -> None:
    plan = PrecisionPlan(("encoder.1.blocks.0.time", "decoder.0.blocks.0.window/Softmax"))
    graph = low(onnx.load(low_bundle / "model.onnx"), "fp16", plan=plan)
    found = types(graph)
    for node in graph.graph.node:
        kept = node.name.startswith(("encoder.1.blocks.0.time/", "encoder.1.blocks.0.time."))
        if node.op_type == "MatMul":
            assert found[node.output[0]] == (TensorProto.FLOAT if kept else TensorProto.FLOAT16), node.name
        if node.op_type == "Softmax":
            kept |= node.name == "decoder.0.blocks.0.window/Softmax"
            assert found[node.output[0]] == (TensorProto.FLOAT if kept else TensorProto.FLOAT16), node.name
    # The ends of the graph, of the module and of the softmax, each crossed once; the residual goes round it.
    assert count_casts(graph) == 6


def test_a_plan_that_keeps_everything_is_float32(exported: BundleModel) -> None:
    graph = onnx.load(exported.file("model.onnx"))
    everything = PrecisionPlan(tuple(node.name for node in graph.graph.node))
    again = typed(graph, "fp16", plan=everything)
    assert set(types(again).values()) & set(CODES.values()) == set()
    assert count_casts(again) == 0


def test_io_in_fp16_and_a_plan_by_the_command(exported: BundleModel, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"fp32": ["encoder.1.blocks.0.time"]}))
    arguments = (exported.name, "--precision", "fp16", "--io", "fp16", "--plan", plan)
    result = CliRunner().invoke(export, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    model = open_model(exported.name)
    details = model.bundle.files["model.fp16.onnx"].details
    assert (details["io"], details["plan"]) == ("fp16", ["encoder.1.blocks.0.time"])
    where, *stems, last = result.stdout.splitlines()
    assert "model.fp16.onnx" in where
    assert len(stems) == 2
    assert last.startswith(f"  {details['casts']} casts; the largest result is ")
    assert last.endswith("of at most 6.55e+04")
    graph = onnx.load(model.file("model.fp16.onnx"))
    ends = (*graph.graph.input, *graph.graph.output)
    assert {value.type.tensor_type.elem_type for value in ends} == {TensorProto.FLOAT16}
    out = infer_planes(
        OrtSession(model, BackendOptions(precision="fp16")), check.check_tensors(model.spec)[INPUT]
    )
    assert out.dtype == np.float32
    assert np.isfinite(out).all()


# What rounds


def toy(*nodes: Any, weights: dict[str, Any] = {}, opset: int = 20) -> Any:  # noqa: B006  read only
    """A float32 graph ``x [2] -> y [2]``."""
    shape = {"x": [2], "y": [2]}
    ends = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape[name]) for name in ("x", "y")}
    initializers = [numpy_helper.from_array(np.asarray(w, np.float32), name) for name, w in weights.items()]
    graph = helper.make_graph(list(nodes), "toy", [ends["x"]], [ends["y"]], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def run(graph: Any, x: Any) -> list[Any]:
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": np.asarray(x, np.float32)}))


def layers(middle: str = "Neg") -> Any:
    eye = np.eye(2)
    return toy(
        helper.make_node("MatMul", ["x", "one"], ["a"], name="first/MatMul"),
        helper.make_node(middle, ["a", "a"] if middle == "Mul" else ["a"], ["b"], name="middle"),
        helper.make_node("MatMul", ["b", "two"], ["y"], name="last/MatMul"),
        weights={"one": eye, "two": eye},
    )


def low(graph: Any, precision: Any, **options: Any) -> Any:
    made = typed(graph, precision, **options)
    del made.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(made)


def test_rounding_is_that_of_the_precision() -> None:
    third = np.float32(1 / 3)
    for precision, wanted in (("fp16", np.float32(np.float16(third))), ("bf16", np.float32(0.33398438))):
        (y, peaks) = run(rounded(low(layers(), precision))[0], [third, 1.0])
        assert y[0] == -wanted
        np.testing.assert_allclose(peaks, 1.0)


def test_peaks_are_those_before_rounding_and_carry_names() -> None:
    graph, names = rounded(low(layers("Mul"), "fp16"))
    y, peaks = run(graph, [1.0, 400.0])
    assert names[1:] == ["first/MatMul", "middle", "last/MatMul"]
    assert peaks[:3].tolist() == [400.0, 400.0, 160_000.0]  # 65504 is the most that half holds
    assert np.isinf(y[1])


def test_an_initializer_of_two_precisions_is_kept_in_both() -> None:
    graph = toy(
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one/MatMul"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="two/MatMul"),
        weights={"w": np.eye(2)},
    )
    made = low(graph, "fp16", plan=PrecisionPlan(("two",)))
    assert sorted(tensor.data_type for tensor in made.graph.initializer) == [1, 10]
    assert {tensor.name for tensor in low(graph, "fp16").graph.initializer} == {"w.fp16"}


def test_the_scales_of_a_resize_stay_float32() -> None:
    graph = toy(
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one/MatMul"),
        helper.make_node("Resize", ["a", "", "scales"], ["b"], name="middle", mode="linear"),
        helper.make_node("MatMul", ["b", "v"], ["y"], name="two/MatMul"),
        weights={"w": np.eye(2), "v": np.ones((4, 2)), "scales": np.array([1.0, 2.0])},
    )
    made = low(graph, "fp16")
    types = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert types == {"w.fp16": 10, "v.fp16": 10, "scales": 1}
    assert count_casts(made) == 2  # at the ends


# What is refused


def test_a_weight_that_does_not_fit_is_refused() -> None:
    graph = toy(
        helper.make_node("MatMul", ["x", "w"], ["y"], name="m/MatMul"), weights={"w": np.eye(2) * 1e5}
    )
    with pytest.raises(ExportError, match=r"weight w reaches 100000, fp16 ends at 65504: keep its module"):
        typed(graph, "fp16")
    typed(graph, "bf16")


def test_a_graph_that_overflows_never_gets_into_the_bundle(plain: BundleModel) -> None:
    from tfswa.runtime.model.bundle import Bundle

    weights = {name: value.astype(np.float32) for name, value in plain.bundle.weights().items()}
    weights["stem.weight"] *= 1e5
    path = plain.bundle.path.parent / "hot.tfx"
    Bundle.create(path, plain.spec, weights)
    before = sorted(item.name for item in path.iterdir())
    with pytest.raises(ExportError) as raised:
        export_onnx(open_model(path), precision="fp16")
    assert re.match(
        r"fp16 graph overflows on [a-z -]+: [\w./]+ gives \d+, it holds 65504: ", str(raised.value)
    )
    assert sorted(item.name for item in path.iterdir()) == before


def test_an_adversary_alone_is_enough(low_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(low_bundle / "model.fp16.onnx")
    assert isinstance(model, FileModel)
    network, given = load_network(open_model(low_bundle)), check.check_tensors(model.spec)
    assert min(check.check_graph(network, model, given)[0].values()) > gate_for("fp16").snr_db
    loud = {"a bang": {INPUT: np.full(model.spec.input_shape(1), 1e30, np.float32)}}
    monkeypatch.setattr(check, "adversarial_tensors", lambda spec: loud)
    with pytest.raises(ExportError, match=r"fp16 graph (overflows|gives NaN or Inf) on a bang"):
        check.check_graph(network, model, given)


def test_adversaries_are_finite_and_loud(exported: BundleModel) -> None:
    found = check.adversarial_tensors(exported.spec)
    assert {"silence", "direct current", "white noise", "square wave of full scale"} < set(found)
    for name, given in found.items():
        assert {tensor: value.shape for tensor, value in given.items()} == {
            INPUT: exported.spec.input_shape(1)
        }
        assert given[INPUT].any() == (name != "silence")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ('{"fp32": "encoder"}', "lists no names"),
        ('{"fp32": [""]}', "lists no names"),
        ('{"fp32": [], "fp8": []}', r"unknown keys \['fp8'\]"),
        (None, "cannot be read"),
    ],
)
def test_bad_plans(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        PrecisionPlan.load(path)


def failure(*arguments: Any) -> Any:
    result = CliRunner().invoke(export, [str(argument) for argument in arguments])
    assert isinstance(result.exception, TfxError), result.output
    return result.exception


def test_a_plan_of_unknown_names_is_refused(low_bundle: Path) -> None:
    graph = onnx.load(low_bundle / "model.onnx")
    for entry in ("encoder.9", "encoder.1.blocks.0.tim", "head/Softmax"):
        with pytest.raises(
            ConfigError, match=f"plan has {entry} in float32, the graph has no node of that name"
        ):
            PrecisionPlan((entry,)).check("a", [node.name for node in graph.graph.node])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "torchscript", "--precision", "fp16"), "--precision fp16 is for --format onnx"),
        (("--format", "torchscript", "--io", "fp16"), "--io fp16 is for --format onnx"),
        (("--io", "fp16"), "asked for is fp32"),
        (("--precision", "bf16", "--io", "fp16"), "asked for is bf16"),
        (("--precision", "bf16", "--opset", "20"), "opset 20 has no convolution in bf16: use 22 or newer"),
    ],
)
def test_options_that_do_not_go_together(
    exported: BundleModel, arguments: tuple[str, ...], message: str
) -> None:
    assert message in str(failure(exported.name, *arguments, "--force"))


def test_a_plan_for_fp32_is_refused(exported: BundleModel) -> None:
    with pytest.raises(UsageError, match="asked for is fp32 altogether"):
        export_onnx(exported, plan=PrecisionPlan(("head",)), force=True)
