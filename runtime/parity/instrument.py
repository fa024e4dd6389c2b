"""What localizing looks into: an artifact whose inner values can be seen.

Found by the backend's name in the entry-point group ``tfswa.instruments``, so that runtime needs neither onnx
nor torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import BackendUnavailable, UsageError
from tfswa.runtime.files.signals import load_point
from tfswa.runtime.gates import gate_for
from tfswa.runtime.model.opening import Model
from tfswa.runtime.parity.graph import Graph
from tfswa.runtime.parity.polygraphy import layers_line
from tfswa.runtime.plugins import entry_points

INSTRUMENTS = "tfswa.instruments"
PRECISIONS = ("fp32", "fp16", "bf16")


class Instrument(Protocol):
    """A graph whose inner values can be looked at."""

    artifact: str
    precision: str
    description: str
    graph: Graph

    def run(self, planes: NDArray[np.float32], values: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Compute on ``[1, 2*C, T, F]`` and return the values that are asked for, by name."""

    def fresh(self) -> Instrument:
        """The same network exported anew in float32; its nodes have the same names."""


def open_instrument(model: Model, backend: str, precision: str) -> Instrument:
    """Open a bundle's artifact.

    Raises:
        UsageError: a backend whose values cannot be looked at, no such precision, or a network that takes
            more than planes.
        BackendUnavailable: the bundle has no such artifact, or a library is missing; of TensorRT's engines,
            the command of NVIDIA's own tool.
        BundleError: the file cannot be read.
    """
    if model.spec.beside_planes:
        raise UsageError(
            f"localize follows the mixture's planes, {model.name} also takes "
            f"{model.spec.beside_planes}: use `tfx parity`, which compares all that it gives"
        )
    if backend == "trt":
        file, _ = model.artifact("onnx", precision)
        line = layers_line(model.file(file), model.spec, gate_for(precision).snr_db)
        raise BackendUnavailable(
            "the layers of an engine are compared by NVIDIA's polygraphy on a machine with a GPU (for "
            f"TensorRT-RTX with POLYGRAPHY_USE_TENSORRT_RTX=1): {line}"
        )
    known = {point.name: point for point in entry_points(group=INSTRUMENTS)}
    if backend not in known:
        names = ", ".join(sorted(known))
        raise UsageError(f"localize looks into {names}, not into {backend}: name one of them")
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    try:
        opens = load_point(known[backend])
    except ModuleNotFoundError as error:
        raise BackendUnavailable(f"localize needs {error.name}: pip install 'tfswa[export]'") from error
    return cast(Instrument, opens(model, precision))
