"""Graphs whose inner values can be looked at: ONNX in ONNX Runtime, TorchScript in torch.

``tfx parity localize`` finds them in the entry-point group ``tfswa.instruments``; what is done with the
values is in ``runtime/parity/localize.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from tfswa.export.onnx import build_graph
from tfswa.export.precision import rounded
from tfswa.export.session import cpu_session
from tfswa.export.torchscript import trace
from tfswa.runtime.backends.torchscript import jit_allowed, load_traced
from tfswa.runtime.errors import BundleError, reason
from tfswa.runtime.model.opening import Model
from tfswa.runtime.parity.graph import Graph, Node
from tfswa.train.backend import load_network

FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
# Neither list is in every trace of a network: a file that is loaded has one list a use.
UNMATCHED = ("prim::Constant", "prim::ListConstruct")
SCOPE = "__module."


def open_onnx(model: Model, precision: str) -> OnnxInstrument:
    """Open a bundle's ONNX graph.

    Raises:
        BackendUnavailable: the bundle has none in that precision.
        BundleError: the file cannot be read.
    """
    name, _ = model.artifact("onnx", precision)
    path = model.file(name)
    try:
        return OnnxInstrument(model, path.name, precision, onnx.load(path))
    except Exception as error:  # protobuf's errors share no public base
        raise BundleError(f"{path} cannot be read as ONNX: {reason(error)}") from error


def open_torchscript(model: Model, precision: str) -> ScriptInstrument:
    """Open a bundle's TorchScript file.

    Raises:
        BackendUnavailable: the bundle has none in that precision.
        BundleError: it cannot be loaded, or is not a trace of this network by this torch.
    """
    name, _ = model.artifact("torchscript", precision)
    return ScriptInstrument.load(model, model.file(name))


class OnnxInstrument:
    """An ONNX graph in ONNX Runtime on the CPU, as it stands: no optimizer touches it.

    Graphs of low precision are rewritten to float32 with every result rounded (``precision.rounded``): the
    CPU provider computes most of float16 in float32, and does not round where a GPU would.
    """

    def __init__(self, model: Model, artifact: str, precision: str, proto: onnx.ModelProto) -> None:
        self.artifact, self.precision, self._model = artifact, precision, model
        self.description = "onnxruntime on cpu, not optimized"
        self._opset = next(entry.version for entry in proto.opset_import if entry.domain == "")
        self.graph = _onnx_graph(proto)
        if precision == "fp32":
            self._proto = proto
        else:
            self.description += f", every result rounded to {precision}"
            self._proto, _ = rounded(proto)

    def run(self, planes: NDArray[np.float32], values: Sequence[str]) -> dict[str, NDArray[Any]]:
        """See ``Instrument``."""
        marked = onnx.ModelProto()
        marked.CopyFrom(self._proto)
        del marked.graph.output[:], marked.graph.node[:]
        marked.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values)
        marked.graph.node.extend(_needed(self._proto, values))
        session = cpu_session(marked, in_order=True, optimized=False)
        return dict(zip(values, session.run(list(values), {self.graph.mixture: planes}), strict=True))

    def fresh(self) -> OnnxInstrument:
        """See ``Instrument``."""
        proto = build_graph(load_network(self._model), self._model.spec, self._opset)
        return OnnxInstrument(self._model, "a fresh export", "fp32", proto)


class ScriptInstrument:
    """A traced graph in torch on the CPU.

    A file that is loaded does not say which module a node comes from. A fresh trace of the network does, and
    has the same nodes in the same order.
    """

    precision = "fp32"

    def __init__(self, model: Model, artifact: str, graph: Any, modules: Sequence[str]) -> None:
        self.artifact, self._model, self._graph = artifact, model, graph
        self.description = f"torch {torch.__version__}, torchscript on cpu"
        self.graph = _script_graph(graph, modules)

    @classmethod
    def load(cls, model: Model, path: Path) -> ScriptInstrument:
        """Open a file.

        Raises:
            BundleError: it cannot be loaded, or is not a trace of this network by this torch.
        """
        loaded = load_traced(path, torch.device("cpu"))
        fresh = _traced(model)
        if _kinds(loaded.graph) != _kinds(fresh):
            raise BundleError(
                f"{path} is not what torch {torch.__version__} traces of {model.spec.family}: "
                f"export it again with `tfx export {model.name} --format torchscript --force`"
            )
        return cls(model, path.name, loaded.graph, _modules(fresh))

    def run(self, planes: NDArray[np.float32], values: Sequence[str]) -> dict[str, NDArray[Any]]:
        """See ``Instrument``."""
        copy = self._graph.copy()
        names = [v.debugName() for node in self._graph.nodes() for v in node.outputs()]
        copies = dict(zip(names, (v for node in copy.nodes() for v in node.outputs()), strict=True))
        marked = [copies[value] for value in values]
        whole = copy.create("prim::TupleConstruct", marked, 1)
        whole.output().setType(torch._C.TupleType([value.type() for value in marked]))
        copy.appendNode(whole)
        copy.eraseOutput(0)
        copy.registerOutput(whole.output())
        copy.eraseInput(0)  # the module, whose weights are constants
        torch._C._jit_pass_dce(copy)  # what no value needs is not run
        run = torch._C._create_function_from_graph("forward", copy)
        with jit_allowed(), torch.inference_mode():
            found = run(torch.from_numpy(planes))
        return {value: tensor.numpy() for value, tensor in zip(values, found, strict=True)}

    def fresh(self) -> ScriptInstrument:
        """See ``Instrument``."""
        graph = _traced(self._model)
        return ScriptInstrument(self._model, "a fresh trace", graph, _modules(graph))


def _onnx_graph(proto: onnx.ModelProto) -> Graph:
    constants = {tensor.name for tensor in proto.graph.initializer}
    shapes: dict[str, list[int | None]] = {}
    comparable = set()
    for value in (*proto.graph.value_info, *proto.graph.output):
        kind = value.type.tensor_type
        if kind.elem_type in FLOATS:
            comparable.add(value.name)
            shapes[value.name] = [dim.dim_value or None for dim in kind.shape.dim]
    nodes = [
        Node(
            node.name,
            node.op_type,
            node.name.rpartition("/")[0],
            tuple(value for value in node.input if value and value not in constants),
            tuple(node.output),
        )
        for node in proto.graph.node
    ]
    return Graph(nodes, proto.graph.input[0].name, proto.graph.output[0].name, comparable, shapes)


def _needed(proto: onnx.ModelProto, values: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that values are computed by, in the order of the file."""
    wanted, kept = set(values), []
    for node in reversed(proto.graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def _traced(model: Model) -> Any:
    return trace(load_network(model), model.spec).graph


def _kinds(graph: Any) -> list[str]:
    return [node.kind() for node in graph.nodes() if node.kind() not in UNMATCHED]


def _modules(graph: Any) -> list[str]:
    """Path of the module of each node that can be matched: the innermost of its scope."""
    scopes = [node.scopeName() for node in graph.nodes() if node.kind() not in UNMATCHED]
    return [scope.rpartition("/")[2].removeprefix(SCOPE) for scope in scopes]


def _script_graph(graph: Any, modules: Sequence[str]) -> Graph:
    """Describe a trace.

    Args:
        graph: torch's.
        modules: of the nodes that can be matched, in their order.
    """
    taken: Counter[str] = Counter()
    rest = iter(modules)
    nodes: list[Node] = []
    comparable: set[str] = set()
    waiting: list[Any] = []  # lists belong to the node that takes them, the next one
    for node in graph.nodes():
        if node.kind() == "prim::Constant":
            continue
        if node.kind() in UNMATCHED:
            waiting.append(node)
            continue
        module = next(rest)
        for one in (*waiting, node):
            op = one.kind().rpartition("::")[2]
            name = f"{module}/{op}".removeprefix("/")
            taken[name] += 1
            unique = name if taken[name] == 1 else f"{name}_{taken[name]}"
            # A size is no sound: what follows from it does not depend on the mixture.
            inputs = () if op in ("size", "device") else tuple(v.debugName() for v in one.inputs())
            outputs = tuple(value.debugName() for value in one.outputs())
            nodes.append(Node(unique, op, module, inputs, outputs))
            comparable.update(v.debugName() for v in one.outputs() if v.type().kind() == "TensorType")
        waiting.clear()
    mixture = list(graph.inputs())[1].debugName()
    stems = next(iter(graph.outputs())).debugName()
    return Graph(nodes, mixture, stems, comparable, {})
