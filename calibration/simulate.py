"""One session for every precision plan: each layer holds its float32, half and 8-bit form, and a switch.

A sensitivity analysis asks for hundreds of plans, and building a graph for each would take longer than
running it. So each layer becomes two ``If`` nodes; what is not chosen costs nothing. Weights are held once,
in float32, and rounded on the way. Results are those of a real graph but for the order of sums: 8-bit numbers
are rounded as Q/DQ pairs do, and half precision rounds what a layer is given and what it gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tfswa.calibration.groups import Group
from tfswa.export.plan import Low
from tfswa.export.precision import LOW
from tfswa.export.quantize import LEVELS, weight_scales
from tfswa.export.session import cpu_session
from tfswa.runtime.model.spec import INPUT

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


@dataclass(frozen=True)
class _Forms:
    """A layer in its three forms; the branches take all but their own weights from outside."""

    node: onnx.NodeProto
    half: Low

    @property
    def prefix(self) -> str:
        """Of the names that are added."""
        return f"{self.node.output[0]}_tfx_"

    def full(self) -> onnx.GraphProto:
        """As it stands."""
        return self._branch(FULL, [self._layer(self.node.input[0], self.node.input[1], self.prefix + FULL)])

    def in_half(self) -> onnx.GraphProto:
        """Input, weights and output rounded to half precision."""
        x, w, y = (self.prefix + name for name in "xwy")
        nodes = [
            *self._halved(self.node.input[0], "x_half", x),
            *self._halved(self.node.input[1], "w_half", w),
        ]
        nodes += [self._layer(x, w, y), *self._halved(y, "y_half", self.prefix + HALF)]
        return self._branch(HALF, nodes)

    def in_int8(self, limit: float, weight: NDArray[np.float32]) -> onnx.GraphProto:
        """Input and weights through Q/DQ pairs."""
        axis, steps = weight_scales(weight, self.node.op_type)
        x, w = (self.prefix + name for name in "xw")
        nodes = [
            *self._rounded(self.node.input[0], "x8", x),
            *self._rounded(self.node.input[1], "w8", w, axis=axis),
        ]
        return self._branch(
            INT8,
            [*nodes, self._layer(x, w, self.prefix + INT8)],
            x8_scale=np.array(limit / LEVELS, np.float32),
            x8_point=np.array(0, np.int8),
            w8_scale=steps,
            w8_point=np.zeros(len(steps), np.int8),
        )

    def either(
        self, kind: str, number: int, result: str, this: onnx.GraphProto, other: onnx.GraphProto
    ) -> Any:
        """The node that takes one branch where its group is of that kind."""
        name = self.node.name if result == self.node.output[0] else ""
        return onnx.helper.make_node(
            "If", [f"tfx_{kind}_{number}"], [result], name=name, then_branch=this, else_branch=other
        )

    def _branch(self, kind: str, nodes: list[onnx.NodeProto], **constants: NDArray[Any]) -> onnx.GraphProto:
        value = onnx.helper.make_tensor_value_info(self.prefix + kind, onnx.TensorProto.FLOAT, None)
        held = [onnx.numpy_helper.from_array(array, self.prefix + name) for name, array in constants.items()]
        return onnx.helper.make_graph(nodes, f"{self.node.output[0]}_{kind}", [], [value], held)

    def low(self, node: onnx.NodeProto) -> onnx.GraphProto:
        """The branch that chooses between float32 and half precision."""
        return self._branch("low", [node])

    def _layer(self, given: str, kernel: str, result: str) -> onnx.NodeProto:
        copy = onnx.NodeProto()
        copy.CopyFrom(self.node)
        copy.input[:2] = [given, kernel]
        copy.output[:] = [result]
        return copy

    def _halved(self, value: str, name: str, result: str) -> list[onnx.NodeProto]:
        make, between = onnx.helper.make_node, self.prefix + name
        return [
            make("Cast", [value], [between], to=int(LOW[self.half])),
            make("Cast", [between], [result], to=int(onnx.TensorProto.FLOAT)),
        ]

    def _rounded(self, value: str, name: str, result: str, **along: Any) -> list[onnx.NodeProto]:
        make, between = onnx.helper.make_node, self.prefix + name
        how = [f"{between}_{part}" for part in ("scale", "point")]
        return [
            make("QuantizeLinear", [value, *how], [between], **along),
            make("DequantizeLinear", [between, *how], [result], **along),
        ]


def _switch(
    node: onnx.NodeProto, number: int, weights: Mapping[str, onnx.TensorProto], limit: float, half: Low
) -> onnx.NodeProto:
    """A node that computes a layer in the precision that its group is in."""
    forms = _Forms(node, half)
    int8 = forms.in_int8(limit, onnx.numpy_helper.to_array(weights[node.input[1]]))
    inner = forms.either(HALF, number, forms.prefix + "low", forms.in_half(), forms.full())
    found: onnx.NodeProto = forms.either(INT8, number, node.output[0], int8, forms.low(inner))
    return found
