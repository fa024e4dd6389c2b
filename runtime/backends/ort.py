"""The ``ort`` backend: an ONNX graph in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.backends import BackendOptions, import_library
from tfswa.runtime.errors import BackendUnavailable, BundleError
from tfswa.runtime.machine import cores

if TYPE_CHECKING:
    from tfswa.runtime.models import Model


# Its pass to blocked layouts crashes on float16 graphs with a free batch (1.31.1, CPU).
_OPTIONS = {"fp16": {"disabled_optimizers": ["NchwcTransformer"]}}


class OrtSession:
    """Runs a bundle's ``model.onnx`` or an exported file; see ``Session``.

    Raises:
        BackendUnavailable: onnxruntime, the device, or the artifact is missing.
        BundleError: the graph cannot be loaded, or its shapes are not the spec's.
    """

    name = "ort"
    precisions = ("fp32", "fp16")
    artifact: tuple[str, str]
    description: str
    versions: Mapping[str, str]

    def __init__(self, model: Model, options: BackendOptions):
        onnxruntime = import_library("onnxruntime", backend="ort")
        precision = options.precision or "fp32"
        if precision == "bf16" and options.device == "cpu":
            raise BackendUnavailable(
                "precision bf16 asked for, onnxruntime has no bfloat16 convolutions on the CPU: "
                "use --backend openvino or torch"
            )
        self.artifact = model.artifact("onnx", precision)
        providers = _providers(options.device, onnxruntime.get_available_providers())
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3  # its warnings are ours to give
        settings.intra_op_num_threads = options.threads or cores()
        path = model.file(self.artifact[0])
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), settings, providers=providers, **_OPTIONS.get(precision, {})
            )
        except Exception as error:  # its exceptions share no public base
            raise BundleError(f"{path} cannot be loaded by onnxruntime: {_first_line(error)}") from error
        _check_provider(providers[0], self._session.get_providers(), options.device)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise BundleError(
                f"{path.name} has {len(inputs)} inputs and {len(outputs)} outputs, a separation network has "
                "one each: export it with `tfx export`"
            )
        self._input, self._output = inputs[0], outputs[0]
        _check_shape(path.name, self._input.shape, model.spec.input_shape(1))
        _check_shape(path.name, self._output.shape, model.spec.output_shape(1))
        self._dtype = np.float16 if self._input.type == "tensor(float16)" else np.float32
        self.versions = {"onnxruntime": onnxruntime.__version__}
        self.description = f"onnxruntime {onnxruntime.__version__}, {precision} on {options.device}"

    def infer(self, mixture: NDArray[np.float32]) -> NDArray[np.float32]:
        """``[B, 2*C, T, F] -> [B, S, 2*C, T, F]``."""
        feed = {self._input.name: np.ascontiguousarray(mixture, dtype=self._dtype)}
        out: NDArray[np.float32] = self._session.run([self._output.name], feed)[0]
        return out.astype(np.float32, copy=False)

    def close(self) -> None:
        """Release the network."""
        self._session = None


def _providers(device: str, available: list[str]) -> list[Any]:
    """Execution providers of a device; the CPU is never added to a CUDA request."""
    kind, _, index = device.partition(":")
    if kind == "cpu" and not index:
        return ["CPUExecutionProvider"]
    if kind == "cuda" and (not index or index.isdigit()):
        if "CUDAExecutionProvider" not in available:
            raise BackendUnavailable(
                f"device {device} asked for, this onnxruntime has {', '.join(available)}: "
                "pip install 'tfswa[ort-gpu]' in place of 'tfswa[ort]', or use --device cpu"
            )
        return [("CUDAExecutionProvider", {"device_id": int(index or 0)})]
    raise BackendUnavailable(f"unknown device {device!r}: use cpu, cuda or cuda:N")


def _check_provider(asked: Any, got: list[str], device: str) -> None:
    name = asked if isinstance(asked, str) else asked[0]
    if not got or got[0] != name:
        raise BackendUnavailable(
            f"device {device} asked for, onnxruntime started {', '.join(got)}: "
            "mend the CUDA installation, or use --device cpu"
        )


def _check_shape(name: str, found: list[Any], wanted: tuple[int, ...]) -> None:
    """Compare all axes but the batch."""
    if list(found[1:]) != list(wanted[1:]):
        raise BundleError(f"{name} has shape {found}, its spec says [B, {', '.join(map(str, wanted[1:]))}]")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
