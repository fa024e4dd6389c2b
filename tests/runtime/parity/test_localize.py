"""The search for the layer to blame, on graphs written down by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tfswa.runtime.errors import NonFiniteError, UsageError
from tfswa.runtime.parity.graph import Graph, Node, module_values
from tfswa.runtime.parity.localize import Located, localize

Array = np.ndarray[Any, np.dtype[Any]]

NODES = [
    Node("a/Conv", "Conv", "a", ("mixture", "weight"), ("a0",)),
    Node("b.c/Conv", "Conv", "b.c", ("a0",), ("c0",)),
    Node("b/Gelu", "Gelu", "b", ("c0",), ("b0",)),
    Node("b/Add", "Add", "b", ("b0", "a0"), ("b1",)),
    Node("e/Mul", "Mul", "e", ("a0",), ("e0",)),
    Node("table/Cos", "Cos", "e", ("weight",), ("table",)),
    Node("Add", "Add", "", ("b1", "e0", "table"), ("stems",)),
]
VALUES = ["a0", "c0", "b0", "b1", "e0", "stems"]
GRAPH = Graph(NODES, "mixture", "stems", {*VALUES, "table"}, dict.fromkeys(VALUES, (None, 4)))
OWN = {"a": "a0", "b.c": "c0", "b": "b1", "e": "e0", "": "stems"}
RIGHT = {value: np.random.default_rng(i).standard_normal((3, 4)) for i, value in enumerate(VALUES)}


@dataclass
class Marked:
    """An instrument that gives the right values, with noise at a level in dB where one is told."""

    noise_db: Mapping[str, float] = field(default_factory=dict)
    turned: Sequence[str] = ()
    artifact: str = "model.graph"
    precision: str = "fp32"
    description: str = "by hand"
    graph: Graph = GRAPH
    runs: list[int] = field(default_factory=list)

    def run(self, planes: Array, values: Sequence[str]) -> dict[str, Array]:
        self.runs.append(len(values))
        return {value: self._value(value) for value in values}

    def fresh(self) -> Marked:
        return Marked()

    def _value(self, value: str) -> Array:
        right = RIGHT[value]
        level = self.noise_db.get(value, math.inf)
        found = np.full_like(right, np.nan) if level == -math.inf else right * (1 + 10 ** (-level / 20))
        return found.T if value in self.turned else found


@dataclass
class Eager:
    """A reference whose modules give the right values."""

    modules: Mapping[str, str] = field(
        default_factory=lambda: {m: OWN[m] for m in ("a", "b.c", "b", "e", "")}
    )
    broken: bool = False

    def module_shapes(self, planes: Array) -> dict[str, tuple[int, ...]]:
        return {**dict.fromkeys(("a", "b.c", "b", "e", ""), (3, 4)), "never": (7, 7)}

    def module_outputs(self, planes: Array, modules: Sequence[str]) -> dict[str, Array]:
        return {m: RIGHT[OWN[m]] * (np.nan if self.broken else 1.0) for m in modules}


def find(instrument: Any, reference: Any = None, **options: Any) -> Located:
    return localize(instrument, reference or Eager(), np.zeros((1, 1)), **options)


def test_values_of_modules_are_what_leaves_them() -> None:
    shapes = dict.fromkeys(("a", "b.c", "b", "e", ""), (3, 4))
    assert module_values(GRAPH, shapes) == OWN
    assert module_values(GRAPH, {**shapes, "e": (3, 5)}).keys() == {"a", "b.c", "b", ""}
    # A module that ends in another's value leaves it to that one.
    nodes = [Node("x.y/Conv", "Conv", "x.y", ("mixture",), ("v",)), Node("Id", "Id", "", ("v",), ("stems",))]
    graph = Graph(nodes, "mixture", "stems", {"v", "stems"}, {})
    assert module_values(graph, {"x.y": (1,), "x": (1,), "": (1,)}) == {"x.y": "v", "": "stems"}


def test_a_sound_graph_has_no_culprit() -> None:
    found = find(Marked())
    assert [step.module for step in found.steps] == ["a", "b.c", "b", "e", "network"]
    assert found.culprit is found.operator is None
    assert found.skipped == ["never"]
    assert all(step.snr_db == math.inf for step in found.steps)


def test_the_first_that_loses_is_blamed_and_not_what_it_feeds() -> None:
    found = find(Marked({"c0": 40.0, "b0": 40.0, "b1": 38.0, "stems": 35.0}))
    assert found.culprit is not None
    assert (found.culprit.module, found.culprit.node) == ("b.c", "b.c/Conv")
    assert found.culprit.before_db == found.ceiling_db
    losses = {step.module: step.loss_db for step in found.steps}
    assert losses["b.c"] == pytest.approx(70.0)
    assert losses["b"] == pytest.approx(2.0)
    assert losses["e"] == 0.0


def test_a_branch_is_judged_by_what_it_was_fed() -> None:
    # In the order of the graph e comes after b, which is bad; but e does not hear b.
    found = find(Marked({"c0": 95.0, "b0": 95.0, "b1": 95.0, "e0": 95.0}), threshold_db=14.0)
    assert {step.module: step.before_db for step in found.steps}["e"] == found.ceiling_db
    found = find(Marked({"c0": 105.0, "b0": 105.0, "b1": 105.0, "e0": 60.0, "stems": 60.0}))
    assert found.culprit is not None
    assert found.culprit.module == "e"


def test_an_operator_inside_of_a_module_is_named_by_a_fresh_graph() -> None:
    found = find(Marked({"b0": 20.0, "b1": 20.0, "stems": 20.0}))
    assert found.culprit is not None
    assert found.operator is not None
    assert (found.culprit.node, found.operator.node) == ("b/Add", "b/Gelu")
    assert [step.node for step in found.within] == ["b/Gelu", "b/Add"]


def test_nan_is_a_loss_of_everything_and_is_blamed_once() -> None:
    found = find(Marked({"c0": -math.inf, "b0": -math.inf, "b1": -math.inf, "stems": -math.inf}))
    assert found.culprit is not None
    assert found.culprit.module == "b.c"
    assert found.culprit.loss_db == math.inf
    assert [step.loss_db for step in found.steps if step.module in ("b", "network")] == [0.0, 0.0]


def test_values_in_another_order_of_axes_are_compared_and_others_skipped() -> None:
    found = find(Marked(turned=("b1",)))
    assert all(step.snr_db == math.inf for step in found.steps)

    class Other(Eager):
        def module_outputs(self, planes: Array, modules: Sequence[str]) -> dict[str, Array]:
            outputs = super().module_outputs(planes, modules)
            return {m: value.reshape(2, 6) if m == "e" else value for m, value in outputs.items()}

    assert find(Marked(), Other()).skipped == ["e", "never"]


def test_values_are_asked_for_in_portions() -> None:
    marked = Marked()
    find(marked, budget_bytes=2 * 4 * 12)
    assert marked.runs == [2, 2, 1]
    marked = Marked()
    find(marked, budget_bytes=1)
    assert marked.runs == [1] * 5


def test_what_means_nothing_is_refused() -> None:
    with pytest.raises(NonFiniteError):
        find(Marked(), Eager(broken=True))
    nodes = [Node(str(i), n.op, "", n.inputs, n.outputs) for i, n in enumerate(NODES)]
    with pytest.raises(UsageError, match="names no module"):
        find(Marked(graph=Graph(nodes, "mixture", "stems", set(VALUES), {})))
