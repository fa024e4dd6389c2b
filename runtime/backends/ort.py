"""The ``ort`` backend: an ONNX graph in ONNX Runtime, on the CPU or by one of its providers for GPUs.

Devices are ``cpu``, ``cuda``, and by the TensorRT providers ``tensorrt`` and ``rtx``, each with ``:N``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.backends import BackendOptions, filled, import_library
from tfswa.runtime.backends.chain import End, Link, all_ends, meet, outer_ends
from tfswa.runtime.backends.running import out_of_memory
from tfswa.runtime.errors import BackendUnavailable, BundleError, reason
from tfswa.runtime.files import caches
from tfswa.runtime.machine import cores, user_cache
from tfswa.runtime.model.spec import DECODE, ENCODE, Shapes

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
# On by default, and it rounds factors to 10 bits on Ampere and later: not what fp32 means here.
_FULL_FLOAT32 = {"use_tf32": "0"}
Tensors = Mapping[str, NDArray[Any]]


class OrtSession:
    """Runs a bundle's ``model.onnx``, one of another precision, or an exported file; see ``Session``.

    On a GPU of CUDA it runs the transform there too, where the bundle holds it as graphs.

    Attributes:
        transform: what computes the transform here, in words; empty where that is left to the host.

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
        self._device = options.device
        providers, self._place = _providers(options.device, onnxruntime.get_available_providers())
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3  # its warnings are ours to give
        settings.intra_op_num_threads = options.threads or cores()
        if providers[0] != _CPU:  # or what a GPU has no kernel for would run on the CPU, unsaid
            settings.add_session_config_entry(_NO_CPU, "1")
        self._library, self._settings = onnxruntime, settings
        self._kept = _keep(providers, self.artifact[1])
        spec, extra = model.spec, _OPTIONS.get(precision, {})
        try:
            network = self._loaded(model, self.artifact[0], spec.takes, spec.gives, providers, **extra)
            self._graphs = {False: [network], True: self._transforms(model, network, providers)}
        except BaseException:
            self._kept.close()
            raise
        self.reentrant = self._place is None  # on a GPU the memory that is bound is one call's
        free = network.engine.get_inputs()[0].shape[0]
        self.batch_limit = free if isinstance(free, int) else None
        self._bound: dict[tuple[bool, int], Callable[[Tensors], dict[str, NDArray[Any]]]] = {}
        self.versions, self.transform = {"onnxruntime": onnxruntime.__version__}, ""
        if self._graphs[True]:
            assert model.bundle is not None
            files = model.bundle.files
            self.versions |= {name: files[name].sha256[:12] for name in (ENCODE, DECODE)}
            self.transform = f"{ENCODE} and {DECODE} on {options.device}"
        self.description = f"onnxruntime {onnxruntime.__version__}, {precision} on {options.device}"

    def infer(self, given: Tensors) -> dict[str, NDArray[np.float32]]:
        """What the network takes to what it gives; see ``Session``."""
        return self._run(given, whole=False)

    def infer_samples(self, given: Tensors) -> dict[str, NDArray[np.float32]]:
        """The same with the transform before it and its inverse behind it; see ``Session``."""
        return self._run(given, whole=True)

    def close(self) -> None:
        """Release the network."""
        self._bound.clear()
        self._graphs.clear()
        self._kept.close()

    def _run(self, given: Tensors, *, whole: bool) -> dict[str, NDArray[np.float32]]:
        graphs = self._graphs[whole]
        takes, _ = outer_ends(graphs)
        items = len(next(iter(given.values())))
        batch = self.batch_limit or items
        feeds = {
            name: np.ascontiguousarray(filled(given[name], batch), dtype=end.kind)
            for name, end in takes.items()
        }
        if self._place is None:
            (network,) = graphs
            values = network.engine.run(list(network.gives), feeds)
            found = dict(zip(network.gives, values, strict=True))
        else:
            if (whole, batch) not in self._bound:
                self._bound[whole, batch] = self._bind(graphs, batch)
            found = self._bound[whole, batch](feeds)
        return {name: value[:items].astype(np.float32, copy=False) for name, value in found.items()}

    def _loaded(
        self, model: Model, name: str, takes: Shapes, gives: Shapes, providers: list[Any], **extra: Any
    ) -> Link:
        """A graph of a model on the device.

        Raises:
            BackendUnavailable: the device did not start, or would leave a node to the CPU.
            BundleError: it cannot be loaded, or its ends are not these.
        """
        path = model.file(name)
        try:
            session = self._library.InferenceSession(str(path), self._settings, providers=providers, **extra)
        except Exception as error:  # its exceptions share no public base
            if "fallback to CPU" in str(error):
                raise BackendUnavailable(
                    f"device {self._device} asked for, onnxruntime would run part of {path.name} on the "
                    "CPU: use --device cpu, or --backend trt"
                ) from error
            raise BundleError(f"{path} cannot be loaded by onnxruntime: {reason(error)}") from error
        _check_provider(providers[0], session.get_providers(), self._device)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        _check_ends(path.name, "inputs", inputs, takes)
        _check_ends(path.name, "outputs", outputs, gives)
        taken, given = (
            {end.name: End(tuple(end.shape[1:]), np.dtype(_TYPES[end.type])) for end in ends}
            for ends in (inputs, outputs)
        )
        return Link(session, taken, given)

    def _transforms(self, model: Model, network: Link, providers: list[Any]) -> list[Link]:
        """The network between the transform and its inverse, on CUDA; none where that cannot be."""
        cuda = [provider for provider in providers if provider[0] == _GPU["cuda"]]
        if model.bundle is None or not cuda or not model.bundle.holds(ENCODE, DECODE):
            return []
        try:
            encode, decode = (
                self._loaded(model, name, *ends, cuda) for name, ends in model.spec.transforms.items()
            )
        except BundleError as error:
            if not out_of_memory(error.__cause__):
                raise
            logger.warning("the CPU transforms: %s", str(error))
            return []
        graphs = [encode, network, decode]
        if meet(graphs):
            return graphs
        logger.info("%s does not take float32: the CPU transforms", self.artifact[0])
        return []

    def _bind(self, graphs: Sequence[Link], batch: int) -> Callable[[Tensors], dict[str, NDArray[Any]]]:
        """Graphs on memory of the device that stays: a call allocates nothing there."""
        assert self._place is not None
        place, value = self._place, self._library.OrtValue.ortvalue_from_shape_and_type
        values = {
            name: value([batch, *end.shape], end.kind.type, *place) for name, end in all_ends(graphs).items()
        }
        takes, gives = outer_ends(graphs)
        bindings = []
        for graph in graphs:
            binding = graph.engine.io_binding()
            for name in graph.takes:
                binding.bind_ortvalue_input(name, values[name])
            for name in graph.gives:
                binding.bind_ortvalue_output(name, values[name])
            bindings.append((graph.engine, binding))

        def run(feeds: Tensors) -> dict[str, NDArray[Any]]:
            for name in takes:
                values[name].update_inplace(feeds[name])
            for session, binding in bindings:
                session.run_with_iobinding(binding)  # which waits until it is done
            return {name: values[name].numpy() for name in gives}

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
    cuda = (_GPU["cuda"], {"device_id": number, **_FULL_FLOAT32})
    if kind == "cuda":
        return [cuda], ("cuda", number)
    # What TensorRT does not take stays on the GPU.
    rest = [cuda] if _GPU["cuda"] in available else []
    return [(wanted, {"device_id": number}), *rest], ("cuda", number)


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
