"""A graph that others published in place of weights: read, and run as it is.

Its bundle holds the file byte for byte, as ``published.onnx``. Such networks take planes with bins before
frames, and give one stem without an axis for it::

    the contract     mixture [B, 2*C, T, F] ───────────────────────────────── stems [B, 1, 2*C, T, F]
                          zeroed bins, transposed                                │ transposed, stem axis
    as published     [B, 2*C, F, T] ──────────────── its nodes ──────────────── [B, 2*C, F, T]

``PublishedNetwork`` is what artifacts are compared with: the published bytes in ONNX Runtime, whose optimizer
is off, and the ends in torch. ``rewriting.py`` writes the ends into the graph, which is then what backends
run. Neither uses the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tfswa.runtime.errors import BackendUnavailable, BundleError, reason
from tfswa.runtime.machine import cores
from tfswa.runtime.model.bundle import GRAPH
from tfswa.runtime.model.opening import Model
from tfswa.runtime.model.spec import ModelSpec
from tfswa.train.backend import load_network

ZEROED = (
    "zeroed_bins"  # in ``ModelSpec.hyper``: of the bins that the network sees, how many are given as zero
)
OLDEST, NEWEST = 13, 25  # operators that passes over graphs here are written for


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
