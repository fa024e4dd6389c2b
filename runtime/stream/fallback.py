"""A bundle's network in float32 on the CPU, for the chunks of which an artifact gave NaN or Inf."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.backends import BackendOptions, Session, open_session
from tfswa.runtime.backends.running import infer
from tfswa.runtime.errors import BackendUnavailable, TfxError, UsageError
from tfswa.runtime.model.opening import Model
from tfswa.runtime.plugins import entry_points


class Fallback:
    """Eager torch where torch and the model's family are installed, else ``model.onnx`` in ONNX Runtime.

    Which of the two is decided at once, without importing either; it is loaded by the first ``infer``.

    Args:
        model: a bundle.
        threads: CPU threads; None for all.

    Attributes:
        backend: name of the backend.
        description: what computes: library, version, precision, device, file; None until it is loaded.

    Raises:
        UsageError: the model is an exported file.
        BackendUnavailable: neither can run here.
    """

    def __init__(self, model: Model, threads: int | None = None):
        self.backend = _choose(model)
        self.description: str | None = None
        self._model, self._options = model, BackendOptions("fp32", "cpu", threads)
        self._session: Session | None = None

    def check_differs(self, backend: str, precision: str | None) -> None:
        """Refuse to stand in for itself: what is NaN in float32 is NaN again, on any device.

        Raises:
            UsageError: ``backend`` in ``precision`` (None for fp32) is what this would run.
        """
        if (backend, precision or "fp32") == (self.backend, "fp32"):
            raise UsageError(
                f"{backend} in fp32 runs already, and is what would compute a chunk again: leave out "
                "--on-nonfinite recompute, or choose another --backend or --precision"
            )

    def infer(self, given: Mapping[str, NDArray[np.float32]]) -> Mapping[str, NDArray[np.float32]]:
        """What the network takes to what it gives, by name.

        Raises:
            TfxError: the network cannot be loaded; the type is that of the reason.
        """
        if self._session is None:
            try:
                self._session = open_session(self.backend, self._model, self._options)
            except TfxError as error:
                raise type(error)(
                    f"a chunk with NaN or Inf cannot be computed in float32: {error}"
                ) from error
            self.description = f"{self._session.description} ({self._session.artifact[0]})"
        return infer(self._session, given)

    def close(self) -> None:
        """Release the network, if it was loaded."""
        if self._session is not None:
            self._session.close()
        self._session = None


def _choose(model: Model) -> str:
    """Name of the backend that can run the model in float32."""
    if model.bundle is None:
        raise UsageError(
            f"{model.name} is an exported file: --on-nonfinite recompute needs the bundle that it came from"
        )
    family = model.spec.family
    if family is None:
        eager = "it is a published graph without weights"
    elif find_spec("torch") is None:
        eager = "torch is not installed"
    elif family not in {point.name for point in entry_points(group="tfswa.families")}:
        eager = f"its family {family} is not installed"
    else:
        return "torch"
    if find_spec("onnxruntime") is None:
        graph = "onnxruntime is not installed"
    elif model.bundle.find("onnx", "fp32") is None:
        graph = "it holds no onnx artifact in fp32"
    else:
        return "ort"
    raise BackendUnavailable(
        f"{model.name} cannot be computed again in float32: {eager}, and {graph}: pip install "
        + ("" if family is None else "'tfswa[torch]', or ")
        + f"'tfswa[ort]' and make the graph with `tfx export {model.name} --format onnx`"
    )
