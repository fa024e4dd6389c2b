"""What a graph is to ``localize.py``: nodes, the values between them, and ways through them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """One operator of a graph.

    Attributes:
        name: unique: ``encoder.0.conv.first/Conv``.
        op: what it computes.
        module: path of the module it comes from; empty for the network itself.
        inputs: values it takes; constants may be left out.
        outputs: values it gives.
    """

    name: str
    op: str
    module: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which they are computed.

    Attributes:
        nodes: all of them.
        mixture: the value that is given.
        stems: the value that is asked for.
        comparable: values that hold real numbers.
        shapes: of values, where known; None for a length that depends on the batch.
    """

    nodes: Sequence[Node]
    mixture: str
    stems: str
    comparable: Collection[str]
    shapes: Mapping[str, Sequence[int | None]]


def module_values(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Find the value that each module gives.

    It is the last one that depends on the mixture, is made inside of the module, is taken by a node outside
    of it, and can have the shape that the eager module gives, in whatever order of the axes. Of modules that
    give the same value the innermost has it.

    Args:
        graph: whose values.
        shapes: of the eager modules' outputs, by path, in the order in which they end.
    """
    heard = _heard(graph)
    takers: dict[str, list[str]] = {}
    for node in graph.nodes:
        for value in node.inputs:
            takers.setdefault(value, []).append(node.module)
    found: dict[str, str] = {}
    for node in graph.nodes:
        for value in node.outputs:
            if value not in heard or value not in graph.comparable:
                continue
            for module in _paths(node.module):
                leaves = value == graph.stems or any(not _inside(m, module) for m in takers.get(value, ()))
                if leaves and module in shapes and _can_be(graph.shapes.get(value), shapes[module]):
                    found[module] = value
    taken: set[str] = set()
    result = {}
    for module in shapes:  # inner modules end before those that they are in
        if module in found and found[module] not in taken:
            taken.add(found[module])
            result[module] = found[module]
    return result


def between(graph: Graph, name: str, known: Collection[str]) -> list[Node]:
    """Nodes that a node's first output is computed by, from known values on, in the order of the graph."""
    makers = makers_of(graph)
    last = next(node for node in graph.nodes if node.name == name)
    inside, todo = {last.name}, [last]
    while todo:
        for value in todo.pop().inputs:
            if value not in known and value in makers and makers[value].name not in inside:
                inside.add(makers[value].name)
                todo.append(makers[value])
    return [node for node in graph.nodes if node.name in inside]


def sources(graph: Graph, makers: Mapping[str, Node], value: str, known: Collection[str]) -> set[str]:
    """Known values that a value is computed from, the nearest on each way."""
    found, seen, todo = set(), {value}, [value]
    while todo:
        for source in makers[todo.pop()].inputs:
            if source in seen:
                continue
            seen.add(source)
            if source in known:
                found.add(source)
            elif source in makers:
                todo.append(source)
    return found


def makers_of(graph: Graph) -> dict[str, Node]:
    """The node that gives each value."""
    return {value: node for node in graph.nodes for value in node.outputs}


def _heard(graph: Graph) -> set[str]:
    """Values that depend on the mixture."""
    heard = {graph.mixture}
    for node in graph.nodes:
        if heard.intersection(node.inputs):
            heard.update(node.outputs)
    return heard


def _paths(module: str) -> Iterator[str]:
    """A module and all that it is in: ``a.b.c``, ``a.b``, ``a``, and the network itself."""
    while module:
        yield module
        module = module.rpartition(".")[0]
    yield ""


def _inside(module: str, of: str) -> bool:
    return not of or module == of or module.startswith(f"{of}.")


def _can_be(found: Sequence[int | None] | None, wanted: Sequence[int]) -> bool:
    """Whether a shape, not all of it known, can be another in some order."""
    if found is None:
        return True
    rest = list(wanted)
    for length in found:
        if length is not None:
            if length not in rest:
                return False
            rest.remove(length)
    return len(found) == len(wanted)
