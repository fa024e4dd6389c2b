"""The ``ort`` backend: an ONNX graph in ONNX Runtime, on the CPU or by one of its providers for GPUs.

Devices are ``cpu``, ``cuda``, and by the TensorRT providers ``tensorrt`` and ``rtx``, each with ``:N``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.backends import BackendOptions, filled, import_library
from tfswa.runtime.errors import BackendUnavailable, BundleError, reason
from tfswa.runtime.files import caches
from tfswa.runtime.machine import cores, user_cache
from tfswa.runtime.model.spec import INPUT

if TYPE_CHECKING:
    from tfswa.runtime.model.opening import Model


logger = logging.getLogger(__name__)

_TYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_CPU = "CPUExecutionProvider"
_NO_CPU = "session.disable_cpu_ep_fallback"
_GPU = {  # by what a device may be called
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rtx": "NvTensorRTRTXExecutionProvider",
}
# Its pass to blocked layouts crashes on float16 graphs with a free batch (1.31.1, CPU).
_BLOCKED = {"disabled_optimizers": ["NchwcTransformer"]}
_OPTIONS = {"fp16": _BLOCKED, "mixed": _BLOCKED}


class OrtSession:
    """Runs a bundle's ``model.onnx``, one of another precision, or an exported file; see ``Session``.

    Raises:
        BackendUnavailable: onnxruntime, the device, or the artifact is missing.
        BundleError: the graph cannot be loaded, or its shapes are not the spec's.
    """

    name = "ort"
    precisions = ("fp32", "fp16", "int8", "mixed")
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
        providers, self._place = _providers(options.device, onnxruntime.get_available_providers())
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3  # its warnings are ours to give
        settings.intra_op_num_threads = options.threads or cores()
        path = model.file(self.artifact[0])
        if providers[0] != _CPU:  # or what a GPU has no kernel for would run on the CPU, unsaid
            settings.add_session_config_entry(_NO_CPU, "1")
        self._kept = _keep(providers, self.artifact[1])
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), settings, providers=providers, **_OPTIONS.get(precision, {})
            )
        except Exception as error:  # its exceptions share no public base
            self._kept.close()
            if "fallback to CPU" in str(error):
                raise BackendUnavailable(
                    f"device {options.device} asked for, onnxruntime would run part of {path.name} on the "
                    "CPU: use --device cpu, or --backend trt"
                ) from error
            raise BundleError(f"{path} cannot be loaded by onnxruntime: {reason(error)}") from error
        _check_provider(providers[0], self._session.get_providers(), options.device)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        _check_ends(path.name, "inputs", inputs, model.spec.takes)
        _check_ends(path.name, "outputs", outputs, model.spec.gives)
        self._takes, self._gives = ({end.name: end for end in ends} for ends in (inputs, outputs))
        self._library, self._spec = onnxruntime, model.spec
        self.reentrant = self._place is None  # on a GPU the memory that is bound is one call's
        free = self._takes[INPUT].shape[0]
        self.batch_limit = free if isinstance(free, int) else None
        self._bound: dict[int, Callable[[Mapping[str, NDArray[Any]]], list[NDArray[Any]]]] = {}
        self.versions = {"onnxruntime": onnxruntime.__version__}
        self.description = f"onnxruntime {onnxruntime.__version__}, {precision} on {options.device}"

    def infer(self, given: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """What the network takes to what it gives; see ``Session``."""
        items = len(given[INPUT])
        batch = self.batch_limit or items
        feeds = {
            name: np.ascontiguousarray(filled(given[name], batch), dtype=_TYPES[end.type])
            for name, end in self._takes.items()
        }
        if self._place is None:
            found = self._session.run(list(self._gives), feeds)
        else:
            if batch not in self._bound:
                self._bound[batch] = self._bind(batch)
            found = self._bound[batch](feeds)
        named = zip(self._gives, found, strict=True)
        return {name: value[:items].astype(np.float32, copy=False) for name, value in named}

    def close(self) -> None:
        """Release the network."""
        self._bound.clear()
        self._session = None
        self._kept.close()

    def _bind(self, batch: int) -> Callable[[Mapping[str, NDArray[Any]]], list[NDArray[Any]]]:
        """The network on memory of the device that stays: a call allocates nothing there."""
        assert self._place is not None
        place, value = self._place, self._library.OrtValue.ortvalue_from_shape_and_type

        def values(ends: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
            return {
                name: value([batch, *shapes[name]], _TYPES[end.type], *place) for name, end in ends.items()
            }

        sources, targets = values(self._takes, self._spec.takes), values(self._gives, self._spec.gives)
        binding = self._session.io_binding()
        for name, source in sources.items():
            binding.bind_ortvalue_input(name, source)
        for name, target in targets.items():
            binding.bind_ortvalue_output(name, target)

        def run(feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
            for name, source in sources.items():
                source.update_inplace(feeds[name])
            self._session.run_with_iobinding(binding)
            return [target.numpy() for target in targets.values()]

        return run


def _providers(device: str, available: list[str]) -> tuple[list[Any], tuple[str, int] | None]:
    """Execution providers of a device, and where its memory is; the CPU is never added to a GPU."""
    kind, _, index = device.partition(":")
    if kind == "cpu" and not index:
        return [_CPU], None
    if kind not in _GPU or (index and not index.isdigit()):
        known = ", ".join(f"{name} or {name}:N" for name in _GPU)
        raise BackendUnavailable(f"unknown device {device!r}: use cpu, {known}")
    wanted = _GPU[kind]
    if wanted not in available:
        raise BackendUnavailable(
            f"device {device} asked for, this onnxruntime has {', '.join(available)}: "
            "pip install 'tfswa[ort-gpu]' in place of 'tfswa[ort]', or use --device cpu"
        )
    number = int(index or 0)
    providers: list[Any] = [(wanted, {"device_id": number})]
    if kind != "cuda" and _GPU["cuda"] in available:  # what TensorRT does not take stays on the GPU
        providers.append((_GPU["cuda"], {"device_id": number}))
    return providers, ("cuda", number)


def _keep(providers: list[Any], sha256: str) -> ExitStack:
    """Have TensorRT, which builds for minutes, keep what it builds, until the stack is closed."""
    stack = ExitStack()
    name, options = providers[0] if isinstance(providers[0], tuple) else (providers[0], {})
    if name == _GPU["tensorrt"]:
        place = user_cache() / "onnxruntime" / f"{sha256[:16]}-{options['device_id']}"
        try:
            stack.enter_context(caches.compiled(place, wait=False))
            options |= {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(place)}
        except OSError as error:
            logger.info("%s is not for us (%s): built anew each time", place, error.strerror)
    return stack


def _check_provider(asked: Any, got: list[str], device: str) -> None:
    name = asked if isinstance(asked, str) else asked[0]
    if not got or got[0] != name:
        raise BackendUnavailable(
            f"device {device} asked for, onnxruntime started {', '.join(got)}: "
            "mend the CUDA installation, or use --device cpu"
        )


def _check_ends(name: str, what: str, found: list[Any], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Compare names, and all axes but the batch."""
    if sorted(end.name for end in found) != sorted(wanted):
        has = ", ".join(end.name for end in found)
        raise BundleError(
            f"{name} has the {what} {has}, its spec says {', '.join(wanted)}: export it with `tfx export`"
        )
    for end in found:
        if tuple(end.shape[1:]) != wanted[end.name]:
            says = ", ".join(map(str, wanted[end.name]))
            raise BundleError(f"{name} has shape {end.shape} of {end.name}, its spec says [B, {says}]")
