"""Groups of layers: what a precision plan decides about as one."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from tfswa.export.quantize import layers

DEPTH = 5  # encoder.1.blocks.0.time_mlp


@dataclass(frozen=True)
class Group:
    """Layers of one module of the network.

    Attributes:
        name: of the module.
        layers: names of their nodes.
        macs: products that they sum for one chunk.
    """

    name: str
    layers: tuple[str, ...]
    macs: int


def groups(graph: onnx.ModelProto, depth: int = DEPTH) -> dict[str, Group]:
    """Group the layers of a graph by module.

    Args:
        graph: float32, shapes inferred, its nodes named after modules.
        depth: parts of a module's name that tell groups apart; a module that has layers of its own is never
            parted, as its name in a precision plan means all of it.

    Returns:
        Groups by name, in the graph's order.
    """
    known = [(layer, layer.name.partition("/")[0].split(".")[:depth]) for layer in layers(graph)]
    modules = {".".join(parts) for _, parts in known}
    found: dict[str, list[tuple[str, int]]] = {}
    for layer, parts in known:
        above = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
        name = next(module for module in above if module in modules)
        found.setdefault(name, []).append((layer.name, layer.macs))
    return {
        name: Group(name, tuple(layer for layer, _ in members), sum(macs for _, macs in members))
        for name, members in found.items()
    }
