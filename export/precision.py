"""Typed precision: a float32 graph rewritten so that the type of every tensor says what it is computed in.

Engines since TensorRT 11 have no precision flag, they compute in the types of the graph. So the types are
decided here, by rule::

    mixture ─ features, normalization ─┐                                      ┌─ mask, product ─> stems
              float32: squares of      cast     float16 or bfloat16          cast  float32: a product with
              1e-4 are gone in half    └─ first layer  ...  last layer ───────┘    the mixture itself

- before the first layer with weights and after the last one: float32
- between them: the low precision, and the sums of a normalization in float32, which is what the operator
  LayerNormalization does by its definition (``stash_type`` 1)
- in float32 too, what divides by a length: squares, their sum, its root, the quotient or product with it.
  Of silence the length is next to nothing, and in half its inverse is infinite
- and float32 for operators that a precision lacks (``FULL``), and wherever a ``PrecisionPlan`` says so

Tensors are cast where two of these meet and nowhere else, each once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from tfswa.export.plan import Low, PrecisionPlan
from tfswa.runtime.errors import ExportError

LOW = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
# TensorRT-RTX 1.7 has no transposed convolution in bfloat16.
FULL = {"fp16": frozenset[str](), "bf16": frozenset(("ConvTranspose",))}
LAYERS = frozenset(("Conv", "ConvTranspose", "MatMul", "Gemm"))
# What moves numbers and does not compute with them has the type of what it is given.
MOVERS = frozenset(("Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape"))
MOVERS |= frozenset(("Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"))
# Inputs that say where, not what: these are float32 by the operator's definition.
PLACES = {"Resize": (1, 2)}  # the region, and the scales
PEAKS = "peaks"

# From squares to their root, and from the root to what it divides.
SUMS = frozenset(("ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare"))
BEFORE_ROOT = SUMS | frozenset(("Add", "Clip", "Max", "Mul", "Pow"))
BEHIND_ROOT = frozenset(("Add", "Clip", "Div", "Expand", "Max", "Mul", "Reciprocal"))

_LOW_CODES = frozenset((onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16))
_ONE = "one_number"


def typed(
    graph: onnx.ModelProto, precision: Low, *, plan: PrecisionPlan | None = None, low_io: bool = False
) -> onnx.ModelProto:
    """Give a float32 graph the types of a precision.

    Args:
        graph: float32, with the types of all its values inferred.
        precision: what is computed in between the first and the last layer.
        plan: exceptions; default: none.
        low_io: input and output of the graph in the low precision too.

    Returns:
        A new graph of the same operators, with casts; its value infos are to be inferred anew.

    Raises:
        ExportError: a weight does not fit the precision.
    """
    model = ir.serde.deserialize_model(graph)
    _Typing(model.graph, precision, plan or PrecisionPlan()).apply(low_io)
    return ir.serde.serialize_model(model)


def or_bf16(precision: Low) -> str:
    """What else a message about overflow can offer: bfloat16 reaches as far as float32."""
    return ", or use bf16" if precision == "fp16" else ""


def rounded(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Turn a typed graph into a float32 one that rounds what the typed one would round.

    ONNX Runtime's CPU provider computes most float16 operators in float32 and leaves the roundings between
    them out, and has no bfloat16 at all. Here every result is rounded, sums are taken in float32 as GPUs do.

    Returns:
        The graph, with a second output ``peaks [n]``: the largest magnitude of each result before it is
        rounded; and the names of the nodes that these are the results of.
    """
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    del made.graph.node[:], made.graph.value_info[:], made.graph.initializer[:]
    low = {}  # names of low values, and their types
    for value in (*graph.graph.input, *graph.graph.value_info, *graph.graph.output):
        if value.type.tensor_type.elem_type in _LOW_CODES:
            low[value.name] = value.type.tensor_type.elem_type
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for tensor in graph.graph.initializer:
        if tensor.data_type in _LOW_CODES:
            full = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor = onnx.numpy_helper.from_array(full, tensor.name)
        made.graph.initializer.append(tensor)
    given = {value.name: f"{value.name}_low" for value in made.graph.input if value.name in low}
    for name, new in given.items():
        made.graph.node.extend(_through(name, new, low[name]))
    names, peaks = [], []
    for node in graph.graph.node:
        node = copy.deepcopy(node)
        node.input[:] = [given.get(name, name) for name in node.input]
        exact = node.op_type in MOVERS
        if node.op_type == "Cast":
            exact, node.op_type = node.output[0] not in low, "Identity"
            del node.attribute[:]
        raw = {name: f"{name}_raw" for name in node.output if name in low and not exact}
        node.output[:] = [raw.get(name, name) for name in node.output]
        made.graph.node.append(node)
        for name, before in raw.items():
            made.graph.node.extend(_peak(before))  # first, so that fewer copies are there at once
            made.graph.node.extend(_through(before, name, low[name]))
            names.append(node.name)
            peaks.append(f"{before}_peak")
    made.graph.node.append(onnx.helper.make_node("Concat", peaks, [PEAKS], axis=0))
    made.graph.output.append(onnx.helper.make_tensor_value_info(PEAKS, onnx.TensorProto.FLOAT, [len(peaks)]))
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.int64), _ONE))
    return made, names


def largest(precision: Low) -> float:
    """The largest number of a precision."""
    limits: Any = ml_dtypes.finfo(LOW[precision].numpy())  # type: ignore[no-untyped-call]
    return float(limits.max)


def count_casts(graph: onnx.ModelProto) -> int:
    """Casts in a graph; a float32 one that is exported here has none."""
    return sum(node.op_type == "Cast" for node in graph.graph.node)


class _Typing:
    """One pass over a graph in topological order."""

    def __init__(self, graph: ir.Graph, precision: Low, plan: PrecisionPlan) -> None:
        self.graph, self.precision, self.plan, self.low = graph, precision, plan, LOW[precision]
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.nodes = list(graph)
        self.outside = _outside(self.nodes, graph.inputs)
        self.lengths = _lengths(self.nodes)

    def apply(self, low_io: bool) -> None:
        if low_io:
            for value in self.graph.inputs:
                value.dtype = self.low
        for node in self.nodes:
            if any(value.dtype == ir.DataType.FLOAT for value in node.outputs):
                self._type(node)
        ends = self.low if low_io else ir.DataType.FLOAT
        for index, value in enumerate(self.graph.outputs):
            if value.dtype != ends:
                self.graph.outputs[index] = self._ended(value, ends)
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]

    def _type(self, node: ir.Node) -> None:
        """Decide what a node computes in, and give it its inputs in that type."""
        wanted = self._precision_of(node)
        places = PLACES.get(node.op_type, ())
        for index, value in enumerate(node.inputs):
            if value is not None and _is_float(value) and value.dtype != wanted and index not in places:
                node.replace_input_with(index, self._as(value, wanted, node))
        for value in node.outputs:
            if _is_float(value):
                value.dtype = wanted

    def _precision_of(self, node: ir.Node) -> ir.DataType:
        if node.op_type in MOVERS:
            computed = [v for v in node.inputs if v is not None and not v.is_initializer()]
            given = {v.dtype for v in computed if v.dtype is not None and _is_float(v)}
            if len(given) == 1:
                return given.pop()
        kept = node.op_type in FULL[self.precision] or self.plan.keeps(node.name or "")
        if kept or node in self.outside or node in self.lengths:
            return ir.DataType.FLOAT
        return self.low

    def _as(self, value: ir.Value, wanted: ir.DataType, before: ir.Node) -> ir.Value:
        """A value in another type: rounded here where it is constant, cast in the graph where not."""
        key = (value, wanted)
        if key not in self.casts:
            if value.is_initializer():
                self.casts[key] = self._rounded(value)
            else:
                suffix = "fp32" if wanted == ir.DataType.FLOAT else self.precision
                node = _cast(value, wanted, f"{value.name}_{suffix}")
                before.prepend(node)
                self.casts[key] = node.outputs[0]
        return self.casts[key]

    def _rounded(self, value: ir.Value) -> ir.Value:
        assert value.const_value is not None
        full = value.const_value.numpy()
        with np.errstate(over="ignore"):
            low = full.astype(self.low.numpy())
        if not np.isfinite(low.astype(np.float32)).all():
            end, other = largest(self.precision), or_bf16(self.precision)
            raise ExportError(
                f"weight {value.name} reaches {np.abs(full).max():g}, {self.precision} ends at {end:g}: "
                f"keep its module in float32 with --plan{other}"
            )
        new = ir.Value(
            name=f"{value.name}.{self.precision}",
            shape=value.shape,
            type=ir.TensorType(self.low),
            const_value=ir.tensor(low, dtype=self.low, name=f"{value.name}.{self.precision}"),
        )
        self.graph.register_initializer(new)
        return new

    def _ended(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        """The graph's output, under its own name, in the type of the ends."""
        name = value.name
        value.name = f"{name}_{self.precision}"
        node = _cast(value, wanted, str(name))
        self.graph.append(node)
        node.outputs[0].shape = value.shape
        return node.outputs[0]


def _outside(nodes: Iterable[ir.Node], inputs: Iterable[ir.Value]) -> set[ir.Node]:
    """Nodes that compute on the mixture before the first layer, and those behind the last one."""
    nodes = list(nodes)
    heard: set[Any] = set(inputs)  # values that depend on the mixture
    behind: set[Any] = set()  # values that depend on a layer
    for node in nodes:
        if node.op_type in LAYERS or any(value in behind for value in node.inputs):
            behind.update(node.outputs)
        if any(value in heard for value in node.inputs):
            heard.update(node.outputs)
    before = {node for node in nodes if node.outputs[0] in heard and node.outputs[0] not in behind}
    needed: set[Any] = set()  # values that a layer depends on
    for node in reversed(nodes):
        if node.op_type in LAYERS or any(value in needed for value in node.outputs):
            needed.update(node.inputs)
    after = {node for node in nodes if node.op_type not in LAYERS and not needed.intersection(node.outputs)}
    return before | after


def _lengths(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """Nodes that compute the length of a vector, and those that divide by it or multiply with its inverse."""
    found: set[ir.Node] = set()
    for node in nodes:
        if node.op_type not in ("ReduceL2", "Sqrt"):
            continue
        before = _chain_to(node)
        if any(each.op_type in SUMS for each in before):
            found |= before | _chain_from(node)
    return found


def _chain_to(root: ir.Node) -> set[ir.Node]:
    """A root, and what leads from squares to it."""
    chain, open_ = {root}, [root]
    while open_:
        for value in open_.pop().inputs:
            node = None if value is None else value.producer()
            if node is None or node in chain or node.op_type not in BEFORE_ROOT:
                continue
            chain.add(node)
            if not _is_square(node):  # what is squared is another matter
                open_.append(node)
    return chain


def _chain_from(root: ir.Node) -> set[ir.Node]:
    """What is done with a root, up to the first node at which another value that is not constant comes in."""
    chain: set[ir.Node] = set()
    open_ = [root]
    values = set(root.outputs)
    while open_:
        for node in [use.node for value in open_.pop().outputs for use in value.uses()]:
            if node in chain or node.op_type not in BEHIND_ROOT:
                continue
            chain.add(node)
            if all(value is None or value in values or _is_constant(value) for value in node.inputs):
                values.update(node.outputs)
                open_.append(node)
    return chain


def _is_square(node: ir.Node) -> bool:
    return node.op_type in ("Pow", "ReduceL2", "ReduceSumSquare") or (
        node.op_type == "Mul" and node.inputs[0] is node.inputs[1]
    )


def _is_constant(value: ir.Value) -> bool:
    """Whether it depends on nothing that the graph is given; shapes, as ``Expand`` has them, do not count."""
    producer = value.producer()
    return not _is_float(value) or value.is_initializer() or (producer is not None and not producer.inputs)


def _through(name: str, new: str, low: int) -> list[onnx.NodeProto]:
    """Round a float32 value to a low precision and back."""
    make = onnx.helper.make_node
    return [
        make("Cast", [name], [f"{new}_rounded"], to=low),
        make("Cast", [f"{new}_rounded"], [new], to=onnx.TensorProto.FLOAT),
    ]


def _peak(name: str) -> list[onnx.NodeProto]:
    """The largest magnitude of a value, ``[1]``."""
    make = onnx.helper.make_node
    return [
        make("Abs", [name], [f"{name}_abs"]),
        make("ReduceMax", [f"{name}_abs"], [f"{name}_top"], keepdims=0),
        make("Reshape", [f"{name}_top", _ONE], [f"{name}_peak"]),
    ]


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, *LOW.values())


def _cast(value: ir.Value, wanted: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], attributes={"to": wanted}, name=f"{name}/Cast")
    node.outputs[0].name, node.outputs[0].dtype = name, wanted
    return node
