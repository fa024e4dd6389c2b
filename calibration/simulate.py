"""One session for every precision plan: each layer holds its float32, half and 8-bit form, and a switch.

A sensitivity analysis asks for hundreds of plans, and building a graph for each would take longer than
running it. So each layer becomes two ``If`` nodes; what is not chosen costs nothing. Weights are held once,
in float32, and rounded on the way. Results are those of a real graph but for the order of sums: 8-bit numbers
are rounded as Q/DQ pairs do, and half precision rounds what a layer is given and what it gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tfswa.calibration.groups import Group
from tfswa.export.plan import Low
from tfswa.export.precision import LOW
from tfswa.export.quantize import LEVELS, weight_scales
from tfswa.export.session import cpu_session
from tfswa.runtime.model.opening import INPUT

FULL, HALF, INT8 = "fp32", "half", "int8"  # what a group can be computed in


class Simulator:
    """A network whose precision is an argument.

    Args:
        graph: float32, shapes inferred.
        groups: of its layers, see ``groups.groups``.
        ranges: by layer, as for ``export.quantize.quantize_graph``.
        half: what half precision is.
    """

    def __init__(
        self, graph: onnx.ModelProto, groups: Mapping[str, Group], ranges: Mapping[str, float], half: Low
    ):
        self.groups = list(groups)
        self._session = cpu_session(_switched(graph, groups, ranges, half), folded=False)

    def infer(self, planes: NDArray[np.float32], plan: Mapping[str, str]) -> NDArray[np.float32]:
        """Run it with a precision for each group; what the plan does not name is float32.

        Args:
            planes: ``[B, 2*C, T, F]``.
            plan: ``fp32``, ``half`` or ``int8`` by group.

        Returns:
            ``[B, S, 2*C, T, F]``.
        """
        switches = {
            f"tfx_{kind}_{number}": np.array(plan.get(group, FULL) == kind)
            for number, group in enumerate(self.groups)
            for kind in (HALF, INT8)
        }
        stems: NDArray[np.float32] = self._session.run(None, {INPUT: planes, **switches})[0]
        return stems


def _switched(
    graph: onnx.ModelProto, groups: Mapping[str, Group], ranges: Mapping[str, float], half: Low
) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    del made.graph.node[:]
    weights = {tensor.name: tensor for tensor in graph.graph.initializer}
    number = {name: index for index, group in enumerate(groups.values()) for name in group.layers}
    for node in graph.graph.node:
        if node.name in number:
            made.graph.node.append(_switch(node, number[node.name], weights, ranges[node.name], half))
        else:
            made.graph.node.append(node)
    for index in range(len(groups)):
        for kind in (HALF, INT8):
            made.graph.input.append(
                onnx.helper.make_tensor_value_info(f"tfx_{kind}_{index}", onnx.TensorProto.BOOL, [])
            )
    return made


def _switch(
    node: onnx.NodeProto, number: int, weights: Mapping[str, onnx.TensorProto], limit: float, half: Low
) -> onnx.NodeProto:
    """A layer in its three forms; the branches take all but their own weights from outside."""
    make, make_graph = onnx.helper.make_node, onnx.helper.make_graph
    output, weight = node.output[0], node.input[1]
    ends = {kind: f"{output}_tfx_{kind}" for kind in (FULL, HALF, INT8, "low")}
    axis, steps = weight_scales(onnx.numpy_helper.to_array(weights[weight]), node.op_type)

    def layer(given: str, kernel: str, result: str) -> onnx.NodeProto:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:2] = [given, kernel]
        copy.output[:] = [result]
        return copy

    def branch(kind: str, nodes: list[onnx.NodeProto], **constants: NDArray[Any]) -> onnx.GraphProto:
        value = onnx.helper.make_tensor_value_info(ends[kind], onnx.TensorProto.FLOAT, None)
        held = [
            onnx.numpy_helper.from_array(array, f"{output}_tfx_{name}") for name, array in constants.items()
        ]
        return make_graph(nodes, f"{output}_{kind}", [], [value], held)

    def halved(value: str, name: str, result: str) -> list[onnx.NodeProto]:
        between = f"{output}_tfx_{name}"
        return [
            make("Cast", [value], [between], to=int(LOW[half])),
            make("Cast", [between], [result], to=int(onnx.TensorProto.FLOAT)),
        ]

    def rounded(value: str, name: str, result: str, **along: Any) -> list[onnx.NodeProto]:
        between, how = f"{output}_tfx_{name}", [f"{output}_tfx_{name}_{part}" for part in ("scale", "point")]
        return [
            make("QuantizeLinear", [value, *how], [between], **along),
            make("DequantizeLinear", [between, *how], [result], **along),
        ]

    x, w, y = (f"{output}_tfx_{name}" for name in "xwy")
    full = branch(FULL, [layer(node.input[0], weight, ends[FULL])])
    in_half = branch(
        HALF,
        [
            *halved(node.input[0], "x_half", x),
            *halved(weight, "w_half", w),
            layer(x, w, y),
            *halved(y, "y_half", ends[HALF]),
        ],
    )
    in_int8 = branch(
        INT8,
        [
            *rounded(node.input[0], "x8", x),
            *rounded(weight, "w8", w, axis=axis),
            layer(x, w, ends[INT8]),
        ],
        x8_scale=np.array(limit / LEVELS, np.float32),
        x8_point=np.array(0, np.int8),
        w8_scale=steps,
        w8_point=np.zeros(len(steps), np.int8),
    )
    inner = make("If", [f"tfx_{HALF}_{number}"], [ends["low"]], then_branch=in_half, else_branch=full)
    return make(
        "If",
        [f"tfx_{INT8}_{number}"],
        [output],
        name=node.name,
        then_branch=in_int8,
        else_branch=branch("low", [inner]),
    )
