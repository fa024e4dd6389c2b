"""A graph that others published in place of weights: run as it is, and rewritten to the contract.

Its bundle holds the file byte for byte, as ``published.onnx``. Such networks take planes with bins before
frames, and give one stem without an axis for it::

    the contract     mixture [B, 2*C, T, F] ───────────────────────────────── stems [B, 1, 2*C, T, F]
                          zeroed bins, transposed                                │ transposed, stem axis
    as published     [B, 2*C, F, T] ──────────────── its nodes ──────────────── [B, 2*C, F, T]

``PublishedNetwork`` is the right-hand side of every comparison: the published bytes in ONNX Runtime, whose
optimizer is off, and the ends in torch. ``to_contract`` writes the ends into the graph, which is then what
backends run. Neither uses the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tfswa.runtime.errors import BackendUnavailable, BundleError, UsageError, reason
from tfswa.runtime.machine import cores
from tfswa.runtime.model import digest
from tfswa.runtime.model.bundle import GRAPH
from tfswa.runtime.model.opening import METADATA, Model, embed
from tfswa.runtime.model.spec import INPUT, OUTPUT, ModelSpec
from tfswa.train.backend import load_network

BATCH = "batch"
ZEROED = (
    "zeroed_bins"  # in ``ModelSpec.hyper``: of the bins that the network sees, how many are given as zero
)
OLDEST, NEWEST = 13, 25  # operators that passes over graphs here are written for
LIMIT_BYTES = (1 << 31) - 1
OURS = "tfx"  # beginning of the names of values that are added


@dataclass(frozen=True)
class Ends:
    """The input and the output of a published graph.

    Attributes:
        takes: name of the input.
        gives: name of the output.
        sizes: of the input, ``[B, 2*C, F, T]``; None for one that is free.
        opset: version of its operators.
        parameters: numbers in its weights.
    """

    takes: str
    gives: str
    sizes: tuple[int | None, ...]
    opset: int
    parameters: int

    @property
    def least_opset(self) -> int:
        """The oldest that it is rewritten in."""
        return max(self.opset, OLDEST)


class PublishedNetwork(nn.Module):
    """The published file behind the contract's ends, item by item, on the CPU.

    Args:
        path: the file, looked at (``onnx_file.check_whole``).
        spec: the contract.

    Raises:
        BundleError: ONNX Runtime cannot load it.
        BackendUnavailable: onnxruntime is not installed.
    """

    def __init__(self, path: Path, spec: ModelSpec) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendUnavailable(
                f"{path} is run as it is by onnxruntime ({error}): pip install 'tfswa[export]'"
            ) from error
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = cores()
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no public base
            raise BundleError(f"{path} cannot be loaded by onnxruntime: {reason(error)}") from error
        self.path, self.spec = path, spec
        self.description = f"onnxruntime {onnxruntime.__version__}, not optimized, float32 on cpu"

    def forward(self, mixture: Tensor) -> Tensor:
        """``[B, 2*C, T, F] -> [B, 1, 2*C, T, F]``."""
        planes = mixture.transpose(2, 3).contiguous().clone()  # [B, 2*C, F, T]
        planes[:, :, : zeroed_bins(self.spec)] = 0.0
        (name,) = (end.name for end in self._session.get_inputs())
        found = [self._session.run(None, {name: item[None]})[0] for item in planes.numpy()]
        stems = torch.from_numpy(np.concatenate(found))
        if stems.shape != planes.shape:
            raise BundleError(
                f"{self.path} gives {list(stems.shape)} for {list(planes.shape)}: no network of this kind"
            )
        return stems.transpose(2, 3).contiguous()[:, None]


def source_network(model: Model) -> nn.Module:
    """What artifacts are made from and compared with: the eager network, or the graph that was published.

    Raises:
        BackendUnavailable: an exported file has neither; or a library is missing.
        BundleError: it is damaged.
    """
    if model.spec.family is None and model.bundle is not None:
        return PublishedNetwork(model.file(GRAPH), model.spec)
    return load_network(model)


def zeroed_bins(spec: ModelSpec) -> int:
    """How many of the lowest bins the network is given as zero."""
    return int(spec.hyper.get(ZEROED, 0))


def read_graph(path: Path) -> Any:
    """Load a graph that was looked at, its weights no inputs of it, without what tools noted in it.

    Raises:
        BundleError: it cannot be read.
        BackendUnavailable: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise BackendUnavailable(f"{path} is read by onnx ({error}): pip install 'tfswa[export]'") from error
    try:
        graph = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors share no public base
        raise BundleError(f"{path} is not an ONNX file, or damaged: {reason(error)}") from error
    held = {tensor.name for tensor in graph.graph.initializer}
    taken = [value for value in graph.graph.input if value.name not in held]  # weights too, before version 4
    del graph.graph.input[:], graph.metadata_props[:]
    graph.graph.input.extend(taken)
    graph.ir_version = max(graph.ir_version, 4)
    return graph


def ends_of(path: Path, graph: Any) -> Ends:
    """Input and output of a graph that ``read_graph`` gave.

    Raises:
        BundleError: it has not one of each, float32 with four axes each, or other operators than ONNX's.
    """
    import onnx

    inputs, outputs = list(graph.graph.input), list(graph.graph.output)
    if (len(inputs), len(outputs)) != (1, 1):
        raise BundleError(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs, a published separation network has "
            "one of each: not imported"
        )
    for end in (*inputs, *outputs):
        kind = end.type.tensor_type
        if kind.elem_type != onnx.TensorProto.FLOAT or len(kind.shape.dim) != 4:
            what = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
            raise BundleError(
                f"{path}: {end.name} is {what} with {len(kind.shape.dim)} axes, must be float with 4, "
                "[B, planes, bins, frames]: not imported"
            )
    used = {node.domain for node in graph.graph.node} - {"", "ai.onnx"}
    if used or graph.functions:
        raise BundleError(
            f"{path} uses operators of {min(used) if used else 'its own'}, only ONNX's own are rewritten: "
            "export it without them"
        )
    opset = max((entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if not 0 < opset <= NEWEST:
        raise BundleError(f"{path} has opset {opset}, at most {NEWEST} is read: export it with that")
    sizes = tuple(dim.dim_value or None for dim in inputs[0].type.tensor_type.shape.dim)
    numbers = sum(int(np.prod(tensor.dims)) for tensor in graph.graph.initializer if tensor.data_type == 1)
    return Ends(inputs[0].name, outputs[0].name, sizes, opset, numbers)


def to_contract(path: Path, spec: ModelSpec, opset: int | None = None) -> Any:
    """Rewrite a published graph so that it meets the contract; its own nodes compute what they did.

    Args:
        path: the file, looked at.
        spec: the contract.
        opset: version of the ONNX operators; None: the graph's own, or 13 where that is older.

    Returns:
        An ``onnx.ModelProto``: ``mixture [batch, 2*C, T, F] -> stems [batch, 1, 2*C, T, F]``.

    Raises:
        BundleError: its shapes are not those of the spec, or it does not meet ONNX's rules.
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
