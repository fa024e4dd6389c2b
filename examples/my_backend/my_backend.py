"""A backend of one's own: the exported graph by ONNX's reference operators, in plain numpy.

Slow, and good to ask when two fast libraries disagree: it shares no kernel with either. Replace what calls
``onnx`` by the library that you have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.backends import BackendOptions, import_library
from tfswa.runtime.errors import BackendUnavailable

if TYPE_CHECKING:
    from tfswa.runtime.model.opening import Model


class MySession:
    """Runs a bundle's ``model.onnx``, or an exported file; see ``tfswa.runtime.backends.Session``."""

    name = "my_backend"  # as it is registered
    precisions = ("fp32",)  # what --precision may ask for
    artifact: tuple[str, str]
    description: str
    versions: Mapping[str, str]

    def __init__(self, model: Model, options: BackendOptions) -> None:
        onnx = import_library("onnx.reference", backend=self.name)
        if options.device != "cpu":  # never fall back: what was not asked for is not run
            raise BackendUnavailable(
                f"device {options.device} asked for, {self.name} has the CPU alone: use --device cpu"
            )
        if options.precision not in (None, *self.precisions):
            raise BackendUnavailable(
                f"precision {options.precision} asked for, {self.name} has fp32 alone: use --precision fp32"
            )
        self.artifact = model.artifact("onnx", "fp32")  # raises, and says how to make it, where it is missing
        self._graph = onnx.ReferenceEvaluator(str(model.file(self.artifact[0])))  # checked against its hash
        self._gives = model.spec.gives  # names and shapes
        version = import_library("onnx", backend=self.name).__version__
        self.versions = {"onnx": version}  # a certificate of parity holds for these alone
        self.description = f"onnx {version} reference operators, fp32 on cpu"

    def infer(self, given: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """What the network takes to what it gives, by name; ``mixture`` to ``stems`` of most."""
        found = self._graph.run(list(self._gives), dict(given))
        return dict(zip(self._gives, found, strict=True))

    def close(self) -> None:
        """Release the network; calling it twice is harmless."""
        self._graph = None
