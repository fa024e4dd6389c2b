"""What parity is measured against; found through the entry-point group ``tfswa.references``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import BackendUnavailable, UsageError
from tfswa.runtime.files.signals import load_point
from tfswa.runtime.model.opening import Model
from tfswa.runtime.plugins import entry_points

REFERENCES = "tfswa.references"
OF_WEIGHTS, OF_GRAPH = "torch", "graph"  # names of what is taken where none is named


class Reference(Protocol):
    """A model's network on a host of its own: what artifacts are measured against.

    A package brings one by an entry point whose name is then a choice of ``tfx parity --reference``.

    Attributes:
        description: what it is, for certificates.
        exact: whether it is more precise than float32; what the float32 reference differs by from it is then
            told.
    """

    description: str
    exact: bool

    def __init__(self, model: Model): ...

    def separate(self, mixture: NDArray[np.float32]) -> NDArray[np.float64]:
        """``[C, N] -> [S, C, N]``."""

    def separate_once(self, mixture: NDArray[np.float32]) -> NDArray[np.float64]:
        """``[C, N] -> [S, C, N]`` in one pass; N is (T - 1) * hop, T a multiple of ``chunk.multiple``."""

    def network_output(self, given: Mapping[str, NDArray[np.float32]]) -> Mapping[str, NDArray[np.floating]]:
        """What the network alone gives of what it takes, by name; of what is lacking it is given zeros."""


class EagerNetwork(Reference, Protocol):
    """The reference ``torch``, whose modules can be looked into: for localizing, seams and attention maps."""

    def module_shapes(self, planes: NDArray[np.float32]) -> dict[str, tuple[int, ...]]:
        """Shapes of what its modules give, by path, in the order in which they end."""

    def module_outputs(
        self, planes: NDArray[np.float32], modules: Sequence[str]
    ) -> dict[str, NDArray[np.floating]]:
        """What some of them give."""

    def attention_maps(self, planes: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Attention weights by module, of one item ``[1, 2*C, T, F]``."""


def usual_reference(model: Model) -> str:
    """What a model is measured against where nothing is named: its eager network, or the published graph."""
    return OF_GRAPH if model.spec.family is None else OF_WEIGHTS


def eager_network(model: Model) -> EagerNetwork:
    """A bundle's network in eager float32.

    Raises:
        UsageError: the model is a published graph.
        BackendUnavailable: torch is missing.
        BundleError: the weights are damaged or do not fit the family.
    """
    if model.spec.family is None:
        raise UsageError(
            f"{model.name} is a published graph without weights, there is no eager network to look into: "
            f"`tfx parity {model.name}` compares the graph as a whole"
        )
    return cast(EagerNetwork, load_reference(OF_WEIGHTS)(model))


def load_reference(name: str) -> type[Reference]:
    """Find a reference by name.

    Raises:
        UsageError: no such reference.
        BackendUnavailable: its library is missing.
    """
    known = {point.name: point for point in entry_points(group=REFERENCES)}
    if name not in known:
        raise UsageError(f"unknown reference {name!r}: choose one of {', '.join(sorted(known))}")
    try:
        return cast(type[Reference], load_point(known[name]))
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"reference {name} needs {error.name}: pip install 'tfswa[torch]'"
        ) from error
