"""A published graph between the contract's ends: what backends run, and what exports are made from.

See ``published.py``, which runs the graph as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tfswa.runtime.errors import BundleError, UsageError
from tfswa.runtime.model import digest
from tfswa.runtime.model.opening import METADATA, embed
from tfswa.runtime.model.spec import INPUT, OUTPUT, ModelSpec
from tfswa.train.published import Ends, ends_of, read_graph, zeroed_bins

BATCH = "batch"
LIMIT_BYTES = (1 << 31) - 1
OURS = (
    "tfx"  # beginning of the names of what is the graph's own, so that none of them is one of the contract's
)


def to_contract(path: Path, spec: ModelSpec, opset: int | None = None) -> Any:
    """Rewrite a published graph so that it meets the contract; its own nodes compute what they did.

    Args:
        path: the file, looked at.
        spec: the contract.
        opset: version of the ONNX operators; None: the graph's own, or 13 where that is older.

    Returns:
        An ``onnx.ModelProto``: ``mixture [batch, 2*C, T, F] -> stems [batch, 1, 2*C, T, F]``.

    Raises:
        BundleError: its shapes are not those of the spec, it is made for one chunk at a time, or it does not
            meet ONNX's rules.
        UsageError: an opset older than its own, or than 13.
    """
    import onnx

    graph = read_graph(path)
    ends = ends_of(path, graph)
    opset = ends.least_opset if opset is None else opset
    if opset < ends.least_opset:
        raise UsageError(f"opset {opset} of {path.name}: it can be in {ends.least_opset} or newer")
    try:
        if opset > ends.opset:
            graph = onnx.version_converter.convert_version(graph, opset)
        made = _with_ends(_simple(graph), ends, spec, opset)
        onnx.checker.check_model(made, full_check=True)
        made = onnx.shape_inference.infer_shapes(made, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # of protobuf, of the checker, of the converter, of shapes: no common base
        raise BundleError(
            f"{path} cannot be rewritten to mixture {[BATCH, *spec.takes[INPUT]]} and stems "
            f"{[BATCH, *spec.gives[OUTPUT]]} in opset {opset}: {_first_line(error)}"
        ) from error
    for value in made.graph.value_info:
        if value.name == "stem" and value.type.tensor_type.shape.dim[0].dim_value:
            raise BundleError(
                f"{path} computes one chunk at a time: export it with a free batch, dynamic_axes"
            )
    return made


def _simple(graph: Any) -> Any:
    """Constants as initializers, as passes over precisions want them; weights that are computed, computed."""
    import onnx_ir as ir
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants

    model = ir.serde.deserialize_model(graph)
    common.IdentityEliminationPass()(model)
    fold_constants(model, input_size_limit=LIMIT_BYTES, output_size_limit=LIMIT_BYTES)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    taken: Counter[str] = Counter()
    for node in model.graph:
        name = _node_name(node.name or "", node.op_type)
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
    return ir.serde.serialize_model(model)


def _node_name(name: str, op: str) -> str:
    """``/layers.0/layers.0.1/Conv``, as torch writes it, as ``layers.0.1/Conv``, as ours are named."""
    *scopes, last = [part for part in name.split("/") if part] or [op]
    path: list[str] = []
    for scope in scopes:
        if path and scope.startswith(f"{path[-1]}."):
            path.pop()  # a list of modules is named again in each of them
        path.append(scope)
    return f"{'.'.join(path)}/{last}".removeprefix("/")


def _with_ends(graph: Any, ends: Ends, spec: ModelSpec, opset: int) -> Any:
    """The nodes of a graph between the contract's ends."""
    import onnx

    make, kind = onnx.helper.make_node, onnx.TensorProto.FLOAT
    inner = onnx.compose.add_prefix(graph, f"{OURS}.", rename_nodes=False, rename_functions=False)
    mask = np.ones(spec.stft.bins, np.float32)
    mask[: zeroed_bins(spec)] = 0.0
    held = [onnx.numpy_helper.from_array(mask, "seen_bins")]
    held.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "stem_axis"))
    before = [
        make("Mul", [INPUT, "seen_bins"], ["mixture_seen"], name="takes/Mul"),
        make(
            "Transpose", ["mixture_seen"], [f"{OURS}.{ends.takes}"], name="takes/Transpose", perm=[0, 1, 3, 2]
        ),
    ]
    after = [
        make("Transpose", [f"{OURS}.{ends.gives}"], ["stem"], name="gives/Transpose", perm=[0, 1, 3, 2]),
        make("Unsqueeze", ["stem", "stem_axis"], [OUTPUT], name="gives/Unsqueeze"),
    ]
    whole = onnx.helper.make_graph(
        [*before, *inner.graph.node, *after],
        "published",
        [onnx.helper.make_tensor_value_info(INPUT, kind, [BATCH, *spec.takes[INPUT]])],
        [onnx.helper.make_tensor_value_info(OUTPUT, kind, [BATCH, *spec.gives[OUTPUT]])],
        [*inner.graph.initializer, *held],
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    made = onnx.helper.make_model(whole, opset_imports=opsets, ir_version=graph.ir_version)
    made.producer_name, made.producer_version = OURS, version("tfswa")
    return made


def sealed_message(graph: Any, spec: ModelSpec, precision: str, source: str) -> bytes:
    """Serialize a graph with its spec inside and a digest of itself at the end.

    Args:
        graph: an ``onnx.ModelProto``, without metadata; it gets them.
        spec: its contract.
        precision: of its layers.
        source: digest of the bundle that it is made from.
    """
    graph.metadata_props.add(key=METADATA, value=embed(spec, precision, source, sealed=True))
    graph.metadata_props.add(key=digest.KEY, value=digest.BLANK)
    return digest.close_message(graph.SerializeToString(deterministic=True))


def gflop(graph: Any, seconds: float) -> float:
    """Billions of floating-point operations a second of audio, of products and convolutions with weights.

    Args:
        graph: of ``to_contract``.
        seconds: of audio in a chunk.
    """
    import onnx

    one = onnx.ModelProto()
    one.CopyFrom(graph)
    del one.graph.value_info[:]
    for end in (*one.graph.input, *one.graph.output):
        end.type.tensor_type.shape.dim[0].dim_value = 1
    one = onnx.shape_inference.infer_shapes(one, data_prop=True)
    values = (*one.graph.input, *one.graph.value_info, *one.graph.output)
    sizes = {v.name: [dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in values}
    weights = {tensor.name: list(tensor.dims) for tensor in one.graph.initializer}
    return round(2 * sum(_macs(node, sizes, weights) for node in one.graph.node) / seconds / 1e9, 2)


def _macs(node: Any, sizes: Mapping[str, list[int]], weights: Mapping[str, list[int]]) -> int:
    """Products that a node sums for one item."""
    if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm") or node.input[1] not in weights:
        return 0
    weight = weights[node.input[1]]
    if node.op_type in ("Conv", "ConvTranspose"):
        of = node.output[0] if node.op_type == "Conv" else node.input[0]
        return int(np.prod(sizes.get(of, [0])) * np.prod(weight[1:]))
    return int(np.prod(sizes.get(node.output[0], [0])) * weight[-2])


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
