"""INT8 in the graph itself: which layers compute in 8 bits, and the Q/DQ pairs that say so.

TensorRT since version 11 knows no calibrators. What is to be computed in 8 bits stands between
QuantizeLinear and DequantizeLinear, which ONNX Runtime, OpenVINO and TensorRT all fuse with the layer::

    x ── Q ── DQ ──┐
                   layer ── (+ bias, float) ── ...
    weight int8 ─ DQ ┘

- only layers with weights: Conv, ConvTranspose and MatMul. Their inputs are quantized and not their
  outputs, so that residual sums, normalizations and softmax stay as they were (quantized, they are what
  ruins networks like these)
- activations: symmetric, one scale a tensor, from a range that was calibrated; TensorRT takes no zero point
- weights: symmetric, one scale an output channel; biases stay float

The rewriting is ``onnxruntime.quantization``'s; what is rewritten, and the ranges, are decided here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tfswa.runtime.documents import parse_json, read_document
from tfswa.runtime.errors import BundleError, ConfigError, ExportError, UsageError
from tfswa.runtime.model.opening import Model

KINDS = ("Conv", "ConvTranspose", "MatMul")
CALIBRATION = "calibration.json"
LEVELS = 127  # of int8 on either side of zero; -128 is not used

_OPTIONS = {
    "QuantizeBias": False,  # TensorRT refuses int32 biases
    "WeightSymmetric": True,
    "ActivationSymmetric": True,
    "OpTypesToExcludeOutputQuantization": list(KINDS),
}
# From -x to x: scales below this are no normal numbers of float16. ONNX Runtime takes 1 in their place, and a
# channel of small weights would be all zeros.
_SMALLEST_HALF = 2.02 * LEVELS * float(np.finfo(np.float16).tiny)


@dataclass(frozen=True)
class Layer:
    """A layer that can be computed in 8 bits.

    Attributes:
        name: of its node, after the module that it came from.
        kind: one of ``KINDS``.
        activation: name of the tensor that it is given.
        weight: name of its weights.
        macs: products it sums for one item, in the batch dimension's absence.
    """

    name: str
    kind: str
    activation: str
    weight: str
    macs: int


def load_ranges(model: Model) -> dict[str, float]:
    """Ranges by layer, as `tfx calibrate` left them in a bundle.

    Raises:
        UsageError: it was not calibrated.
        BundleError: what it left is damaged, or of other weights.
    """
    bundle = model.bundle
    if bundle is None or CALIBRATION not in bundle.files:
        raise UsageError(
            f"{model.name} was not calibrated, which int8 needs: `tfx calibrate {model.name} --audio FOLDER`"
        )
    try:
        kept: dict[str, Any] = parse_json(read_document(bundle.file(CALIBRATION)))
        source, ranges = str(kept["source"]), {str(k): float(v) for k, v in kept["ranges"].items()}
        wrong = [name for name, limit in ranges.items() if not 0 < limit < math.inf]
        if wrong:
            raise ValueError(f"the range of {wrong[0]} is {ranges[wrong[0]]}")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise BundleError(f"{CALIBRATION} of {model.name} is damaged ({error}): calibrate again") from error
    if source != bundle.digest:
        raise BundleError(
            f"{CALIBRATION} of {model.name} is of the weights {source:.12}, these are {bundle.digest:.12}: "
            "calibrate again"
        )
    return ranges


def layers(graph: onnx.ModelProto) -> list[Layer]:
    """Layers of a graph that have weights of their own, in its order.

    Args:
        graph: float32 or float16, not quantized.
    """
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    shapes = item_shapes(graph)
    return [
        Layer(
            node.name,
            node.op_type,
            node.input[0],
            node.input[1],
            _macs(node, shapes, weights[node.input[1]]),
        )
        for node in graph.graph.node
        if node.op_type in KINDS and node.input[1] in weights and node.input[0] not in weights
    ]


def item_shapes(graph: onnx.ModelProto) -> dict[str, list[int]]:
    """Shapes of a graph's values for one item.

    Inferred anew: in a graph with a free batch, what is folded into it (windows, bands) has no size.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    del copy.graph.value_info[:]
    for value in (*copy.graph.input, *copy.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = 1
    made = onnx.shape_inference.infer_shapes(copy, data_prop=True)
    return {
        value.name: [max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim]
        for value in (*made.graph.input, *made.graph.value_info, *made.graph.output)
    }


def quantize_graph(
    graph: onnx.ModelProto, ranges: Mapping[str, float], names: Collection[str]
) -> onnx.ModelProto:
    """Put Q/DQ pairs before layers of a graph.

    Args:
        graph: float32 or float16, with the types of all its values inferred.
        ranges: by layer, the magnitude of its input that the largest 8-bit number stands for.
        names: layers to be computed in 8 bits.

    Returns:
        A new graph; its value infos are to be inferred anew.

    Raises:
        ConfigError: a layer is not in the graph, or has no range.
        ExportError: a range or a weight is not a finite number.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    wanted = set(names)
    chosen = [layer for layer in layers(graph) if layer.name in wanted]
    if missing := wanted - {layer.name for layer in chosen}:
        raise ConfigError(f"{min(missing)} is to be computed in int8, the graph has no such layer")
    highest = _highest(graph, chosen, ranges)
    data = {name: TensorData(lowest=-limit, highest=limit) for name, limit in highest.items()}
    options: dict[str, Any] = dict(_OPTIONS)
    if any(limit.dtype == np.float16 for limit in highest.values()):
        options["MinimumRealRange"] = _SMALLEST_HALF
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    if not chosen:  # to ONNX Runtime no names are all of them
        return copy
    with _quiet():
        quantizer = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, data),
            nodes_to_quantize=sorted(wanted),
            nodes_to_exclude=[],
            op_types_to_quantize=list(KINDS),
            extra_options=options,
        )
        quantizer.quantize_model()
    made: onnx.ModelProto = quantizer.model.model
    _restore_other_users(made.graph, graph.graph, wanted)
    _sort(made.graph)
    for entry in list(made.opset_import):
        if entry.domain:  # ONNX Runtime's own operators, none of which is used
            made.opset_import.remove(entry)
    return made


def _highest(
    graph: onnx.ModelProto, chosen: Collection[Layer], ranges: Mapping[str, float]
) -> dict[str, NDArray[Any]]:
    """By activation, what the largest 8-bit number stands for; a scale has the type of what it scales."""
    found: dict[str, float] = {}
    for layer in chosen:
        if layer.name not in ranges:
            raise ConfigError(f"{layer.name} is to be computed in int8, no range of it was calibrated")
        limit = float(ranges[layer.name])
        if not (math.isfinite(limit) and limit > 0):
            raise ExportError(f"the range of {layer.activation} is {limit:g}: calibrate on other audio")
        # Layers that share an input share its pair, and so the wider of their ranges.
        found[layer.activation] = max(found.get(layer.activation, 0.0), limit)
    weights = {layer.weight for layer in chosen}
    for tensor in graph.graph.initializer:
        if tensor.name in weights and not np.isfinite(onnx.numpy_helper.to_array(tensor)).all():
            raise ExportError(f"weight {tensor.name} holds NaN or Inf: train the network again")
    types = _types(graph)
    with np.errstate(over="ignore"):
        highest = {name: np.array(limit, types[name]) for name, limit in found.items()}
    for name, value in highest.items():
        if not np.isfinite(value):
            raise ExportError(
                f"the range of {name} is {found[name]:g}, {types[name]} holds no such number: use int8"
            )
    return highest


def count_quantized(graph: onnx.ModelProto) -> int:
    """Layers of a graph whose input comes through a Q/DQ pair."""
    pairs = {node.output[0] for node in graph.graph.node if node.op_type == "DequantizeLinear"}
    return sum(node.op_type in KINDS and pairs.issuperset(node.input[:2]) for node in graph.graph.node)


def weight_scales(weight: NDArray[np.float32], kind: str) -> tuple[int, NDArray[np.float32]]:
    """The axis of a layer's output channels, and what one step of each channel's 8-bit weights is worth.

    Args:
        weight: of a layer of that kind, in ONNX's layout.
        kind: one of ``KINDS``.
    """
    axis = {"Conv": 0, "ConvTranspose": 1}.get(kind, weight.ndim - 1)
    others = tuple(index for index in range(weight.ndim) if index != axis)
    scale = np.abs(weight).max(axis=others).astype(np.float32) / np.float32(LEVELS)
    return axis, np.where(scale > 0, scale, np.float32(1))


def _restore_other_users(made: onnx.GraphProto, graph: onnx.GraphProto, chosen: Collection[str]) -> None:
    """Give nodes that were not chosen what they were given before.

    ONNX Runtime's quantizer has all users of a tensor take it from behind its pair, residual sums too.
    """
    before = {node.name: node for node in graph.node}
    used = set()
    for node in made.node:
        if node.name in before and node.name not in chosen:
            node.input[:] = before[node.name].input
        used.update(node.input)
    held = {tensor.name for tensor in made.initializer}
    made.initializer.extend(t for t in graph.initializer if t.name in used - held)


def _types(graph: onnx.ModelProto) -> dict[str, Any]:
    """NumPy's type of each value that has one there."""
    values = (*graph.graph.input, *graph.graph.value_info, *graph.graph.output)
    return {
        value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in values
    }


def _sort(graph: onnx.GraphProto) -> None:
    """Put nodes that were appended before the first that uses them; all others keep their order."""
    made_by = {name: index for index, node in enumerate(graph.node) for name in node.output}
    ordered: dict[int, None] = {}

    def place(index: int) -> None:
        for name in graph.node[index].input:
            source = made_by.get(name)
            if source is not None and source not in ordered:
                place(source)  # a pair is two nodes deep
        ordered.setdefault(index)

    for index in range(len(graph.node)):
        place(index)
    nodes = [graph.node[index] for index in ordered]
    copies = onnx.GraphProto()
    copies.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(copies.node)


def _macs(node: onnx.NodeProto, shapes: Mapping[str, list[int]], weight: tuple[int, ...]) -> int:
    made = math.prod(shapes.get(node.output[0], [0]))
    if node.op_type == "Conv":
        return made * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(shapes.get(node.input[0], [0])) * math.prod(weight[1:])
    return made * weight[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Its advice is to run a preprocessing that was done when the graph was exported."""
    log = logging.getLogger()
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
