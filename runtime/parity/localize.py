"""Localize: the first layer of an exported graph that loses more than it may.

The eager network and the artifact take the same chunk, and what each module gives is compared. Both sides
are asked for a few values at a time, so that memory is bounded whatever the network's size::

    eager network ── module outputs ──┐
                                      ├──> SNR of each ──> the first that lost more than what it was fed
    graph ── the same values marked ──┘                        └──> its nodes, one by one: which of them

A module's value in the graph is found by name: nodes are called after the modules that they come from
(``encoder.0.conv.first/Conv``), and what leaves a module is what nodes outside of it take. A layer *loses*
what its SNR lies below the worst SNR of the compared values that it was computed from, so that a fault far
above does not count again; whatever lies above ``CEILING_DB`` is rounding and counts as exact.

Once a module is found, the network is exported afresh, and the artifact's nodes between the module's inputs
and its output are compared with those of the fresh graph: that names the operator.

Nothing here knows torch or onnx: graphs are run by an ``Instrument``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import NonFiniteError, UsageError
from tfswa.runtime.metrics import finite_db, likeness_db
from tfswa.runtime.parity.graph import Graph, Node, between, makers_of, module_values, sources
from tfswa.runtime.parity.instrument import Instrument
from tfswa.runtime.parity.reference import EagerNetwork

THRESHOLD_DB = 10.0
CEILING_DB = {
    "fp32": 110.0,
    "fp16": 60.0,
    "bf16": 42.0,
}  # what sound graphs of a precision reach, less a few dB
BUDGET_BYTES = 512 << 20  # of the values that are held at once, on either side
NETWORK = "network"  # what the whole is called among its modules


@dataclass(frozen=True)
class Step:
    """A value that was compared.

    Attributes:
        module: path of the module that gives it.
        node: name of its node in the graph.
        op: the node's operator.
        before_db: the worst SNR of what it was computed from, at most the ceiling.
        snr_db: its own; ``-math.inf`` where it holds NaN or Inf, ``math.inf`` where it is equal.
        largest: its largest magnitude in the graph; NaN or Inf where it holds such.
        reference: the same in the eager network.
    """

    module: str
    node: str
    op: str
    before_db: float
    snr_db: float
    largest: float
    reference: float

    @property
    def loss_db(self) -> float:
        """What it lost; 0 where nothing was left to lose."""
        return 0.0 if self.before_db == -math.inf else max(0.0, self.before_db - self.snr_db)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; None for what is not finite."""
        return {
            "module": self.module,
            "op": self.op,
            "node": self.node,
            "fed_db": finite_db(self.before_db),
            "snr_db": finite_db(self.snr_db),
            "loss_db": finite_db(self.loss_db),
            "finite": self.snr_db != -math.inf,
            "largest": finite_db(self.largest),
            "eager_largest": finite_db(self.reference),
        }


@dataclass(frozen=True)
class Located:
    """What was found.

    Attributes:
        artifact: name of the file.
        precision: of it.
        description: what ran it.
        threshold_db: what a layer may lose.
        ceiling_db: what counts as exact.
        steps: modules in the order of the graph.
        skipped: modules that were not: rearranged by the exporter, or they give what an inner one gives.
        culprit: the first step that lost more, or None.
        within: the culprit's nodes, one by one, where a fresh graph has them too.
        operator: the node that lost it; None without a culprit.
    """

    artifact: str
    precision: str
    description: str
    threshold_db: float
    ceiling_db: float
    steps: Sequence[Step]
    skipped: Sequence[str]
    culprit: Step | None
    within: Sequence[Step]
    operator: Step | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        names = ("artifact", "precision", "description", "threshold_db", "ceiling_db")
        return {
            **{name: getattr(self, name) for name in names},
            "compared": len(self.steps),
            "skipped": list(self.skipped),
            "culprit": self.culprit and self.culprit.to_dict(),
            "operator": self.operator and self.operator.to_dict(),
            "steps": [step.to_dict() for step in self.steps],
        }


def localize(
    instrument: Instrument,
    reference: EagerNetwork,
    planes: NDArray[np.float32],
    *,
    threshold_db: float = THRESHOLD_DB,
    budget_bytes: int = BUDGET_BYTES,
) -> Located:
    """Find the first layer that loses more than ``threshold_db``.

    Args:
        instrument: the artifact.
        reference: the eager network.
        planes: a chunk with sound, ``[1, 2*C, T, F]``.
        threshold_db: what a layer may lose.
        budget_bytes: of the values that are held at once, on either side.

    Raises:
        UsageError: no module of the network is found in the graph.
        NonFiniteError: the eager network itself gives NaN or Inf.
    """
    graph, ceiling = instrument.graph, CEILING_DB[instrument.precision]
    shapes = reference.module_shapes(planes)
    values = module_values(graph, shapes)
    sizes = {module: 4 * math.prod(shapes[module]) for module in values}
    compared: dict[str, _Compared] = {}
    for modules in _portions(sizes, budget_bytes):
        found = instrument.run(planes, [values[module] for module in modules])
        right = reference.module_outputs(planes, modules)
        for module in modules:
            one = _compare(right[module], found[values[module]], ceiling - threshold_db)
            if one is not None:
                compared[values[module]] = one
        del found, right  # or the next portion would come beside them
    names = {value: module for module, value in values.items() if value in compared}
    if not any(names.values()) and len(shapes) > 1:  # the whole is found whatever nodes are called
        raise UsageError(
            f"{instrument.artifact} names no module of the network: export it with this version of tfx"
        )
    steps = list(_steps(graph, compared, names, ceiling))
    culprit = next((step for step in steps if step.loss_db > threshold_db), None)
    within, operator = [], culprit
    if culprit is not None:
        inside = between(graph, culprit.node, set(compared))
        within = _within(instrument, inside, planes, ceiling, budget_bytes) if len(inside) > 1 else []
        operator = next((step for step in within if step.loss_db > threshold_db), None)
        operator = operator or max(within, key=lambda step: step.loss_db, default=culprit)
    skipped = [module or NETWORK for module in shapes if module not in names.values()]
    return Located(
        instrument.artifact,
        instrument.precision,
        instrument.description,
        threshold_db,
        ceiling,
        steps,
        skipped,
        culprit,
        within,
        operator,
    )


@dataclass(frozen=True)
class _Compared:
    snr_db: float
    largest: float
    reference: float


def _compare(right: NDArray[Any], found: NDArray[Any], good_db: float) -> _Compared | None:
    """Compare two arrays, in whatever order of axes they are most alike; None where none fits."""
    if not np.isfinite(right).all():
        raise NonFiniteError("the eager network gives NaN or Inf: train it again")
    with np.errstate(invalid="ignore"):
        largest, reference = float(np.abs(found).max(initial=0.0)), float(np.abs(right).max(initial=0.0))
    if sorted(right.shape) != sorted(found.shape):
        return None
    if not np.isfinite(found).all():
        return _Compared(-math.inf, largest, reference)
    best = -math.inf
    orders = itertools.permutations(range(right.ndim))  # the first leaves all as it is
    for order in orders:
        turned = right.transpose(order)
        if turned.shape == found.shape:
            best = max(best, likeness_db(turned, found))
            if best >= good_db:
                break
    return _Compared(best, largest, reference)


def _steps(
    graph: Graph, compared: Mapping[str, _Compared], names: Mapping[str, str], ceiling: float
) -> Iterator[Step]:
    """Compared values in the order of the graph."""
    makers = makers_of(graph)
    for node in graph.nodes:
        for value in node.outputs:
            if value in compared:
                one = compared[value]
                fed = sources(graph, makers, value, compared)
                before = min((compared[source].snr_db for source in fed), default=math.inf)
                yield Step(
                    names[value] or NETWORK,
                    node.name,
                    node.op,
                    min(before, ceiling),
                    one.snr_db,
                    one.largest,
                    one.reference,
                )


def _within(
    instrument: Instrument, inside: list[Node], planes: NDArray[np.float32], ceiling: float, budget: int
) -> list[Step]:
    """Compare the nodes of a part of the graph, and what they take, with those of a fresh graph."""
    graph, fresh = instrument.graph, instrument.fresh()
    new = {node.name: node.outputs[0] for node in fresh.graph.nodes if node.outputs}
    makers = makers_of(graph)
    wanted = [node for node in inside if node.name in new]
    wanted += [
        makers[value]
        for node in inside
        for value in node.inputs
        if value in makers and makers[value].name in new and makers[value] not in inside
    ]
    pairs = {
        node.outputs[0]: new[node.name]
        for node in wanted
        if node.outputs[0] in graph.comparable and new[node.name] in fresh.graph.comparable
    }
    compared: dict[str, _Compared] = {}
    # Their sizes are not known beforehand; values of one module are about as large as each other.
    for values in _portions(dict.fromkeys(pairs, budget // 8), budget):
        found = instrument.run(planes, values)
        right = fresh.run(planes, [pairs[value] for value in values])
        for value in values:
            one = _compare(right[pairs[value]], found[value], math.inf)
            if one is not None:
                compared[value] = one
    own = {node.name for node in inside}
    modules = {node.outputs[0]: node.module for node in graph.nodes if node.outputs}
    return [step for step in _steps(graph, compared, modules, ceiling) if step.node in own]


def _portions(sizes: Mapping[str, int], budget: int) -> Iterator[list[str]]:
    """Names in portions that stay within a budget, or hold one."""
    portion: list[str] = []
    total = 0
    for name, size in sizes.items():
        if portion and total + size > budget:
            yield portion
            portion, total = [], 0
        portion.append(name)
        total += size
    if portion:
        yield portion


def worst_first(steps: Iterable[Step], count: int) -> list[Step]:
    """The steps that lost most, the worst first."""
    return sorted(steps, key=lambda step: (-step.loss_db, step.snr_db))[:count]
