"""Backends: what runs a network on named tensors. Found through the entry-point group ``tfswa.backends``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.backends.running import failed, out_of_memory
from tfswa.runtime.errors import BackendUnavailable, TfxError, UsageError, did_you_mean
from tfswa.runtime.failures import of_library
from tfswa.runtime.files.signals import held_back, load_point
from tfswa.runtime.limits import MOST_THREADS, check_number
from tfswa.runtime.plugins import entry_points

if TYPE_CHECKING:
    from tfswa.runtime.model.opening import Model

GROUP = "tfswa.backends"
AUTO = "auto"  # registered like a backend: the function that chooses one
EXTRAS = {  # what brings a library, by its top-level package
    "cuda": "trt-rtx",
    "google": "triton",
    "grpc": "triton",
    "onnxruntime": "ort",
    "openvino": "openvino",
    "tensorrt": "trt",
    "tensorrt_rtx": "trt-rtx",
    "torch": "torch",
    "tritonclient": "triton",
}
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "mixed")
DEVICES = ("cpu", "cuda", "tensorrt", "rtx", "grpc", "grpcs", "auto")
_PRECISION_SLIPS = {
    **dict.fromkeys(("half", "float16", "f16", "16"), "fp16"),
    **dict.fromkeys(("full", "single", "float", "float32", "f32", "32"), "fp32"),
    **dict.fromkeys(("bfloat16", "bf", "brain"), "bf16"),
    **dict.fromkeys(("i8", "8", "uint8", "quantized", "quantised"), "int8"),
    **{name: name for name in PRECISIONS},  # in capitals
}
_BACKEND_SLIPS = {
    "onnx": "ort",
    "onnxruntime": "ort",
    "tensorrt": "trt",
    "pytorch": "torch",
    "jit": "torchscript",
}
_DEVICE_SLIPS = {**dict.fromkeys(("gpu", "nvidia", "cude", "cuda0"), "cuda"), **{n: n for n in DEVICES}}


@dataclass(frozen=True)
class BackendOptions:
    """What a user may choose.

    Attributes:
        precision: of the artifact, one of ``PRECISIONS``; ``int8`` and ``mixed`` are of a calibrated graph.
            None for fp32, or for what a lone exported file has.
        device: ``cpu``, ``cuda`` or ``cuda:N``; of the ``triton`` backend ``grpc://HOST:PORT``. ``auto`` is a
            backend's own, and a GPU where ``--backend auto`` finds one that works.
        threads: CPU threads, from 1 to 8 or, if there are more, the number of cores; None for all.

    Raises:
        UsageError: the number of threads is outside of its limits.
    """

    precision: str | None = None
    device: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None:
            check_number("threads", self.threads, MOST_THREADS)


class Session(Protocol):
    """A loaded network.

    Class attributes may say more: ``precisions`` what it can be asked for, if not fp32 alone;
    ``device_default`` where it runs if nobody says, if not on the CPU; ``compiles`` that loading it takes
    minutes; ``reentrant`` that several threads may call ``infer`` at once (else they take turns);
    ``batch_limit`` the most items that it takes, if there is a limit. A session on a GPU that has the
    transform there as well says in ``transform`` what computes it, and has ``infer_samples``: what the
    network takes but ``samples [B, C, N]`` in place of planes, to ``audio [B, S, C, N]`` and the next state.
    One that runs elsewhere has ``place``, what certificates say in place of ``options.device``, an address.
    ``open_session`` adds ``options``, as the backend got them: ``auto`` has decided on a device.

    Attributes:
        name: the backend's, as registered.
        artifact: name and SHA-256 of the file it runs.
        description: one line: library, version, device, precision.
        versions: library versions that evidence is bound to.
    """

    name: str
    artifact: tuple[str, str]
    description: str
    versions: Mapping[str, str]

    def __init__(self, model: Model, options: BackendOptions): ...

    def infer(self, given: Mapping[str, NDArray[np.float32]]) -> Mapping[str, NDArray[np.float32]]:
        """What the network takes to what it gives: float32, by the names of ``ModelSpec``, B items each.

        Of most: ``mixture [B, 2*C, T, F]`` to ``stems [B, S, 2*C, T, F]``.
        """

    def close(self) -> None:
        """Release the network; calling it twice is harmless."""


def backend_names() -> list[str]:
    """Names of all registered backends, sorted; ``auto`` is none."""
    return sorted(point.name for point in entry_points(group=GROUP) if point.name != AUTO)


def precisions_of(backend: str) -> tuple[str, ...]:
    """What a backend can be asked for; ``("fp32",)`` where its library is missing, or where it does not say.

    Raises:
        UsageError: no such backend.
    """
    return tuple(_said(backend, "precisions", ("fp32",)))


def default_device(backend: str) -> str:
    """Where a backend runs if nobody says.

    Raises:
        UsageError: no such backend.
    """
    return AUTO if backend == AUTO else str(_said(backend, "device_default", "cpu"))


def compiles(backend: str) -> bool:
    """Whether it takes minutes to load.

    Raises:
        UsageError: no such backend.
    """
    return bool(_said(backend, "compiles", False))


def open_session(backend: str, model: Model, options: BackendOptions) -> Session:
    """Load a model in a backend; what ``auto`` takes is in ``runtime/backends/auto.py``.

    Raises:
        UsageError: no such backend.
        BackendUnavailable: its library, its device or the model's artifact for it is missing.
    """
    kind = _load(_point(backend))
    if backend == AUTO:
        return kind(model, options)  # which opens one of the others
    options = resolved(model, options)
    if options.device == "auto":
        options = replace(options, device=default_device(backend))
    try:
        session = kind(model, options)
    except TfxError as error:
        if not out_of_memory(error.__cause__):
            raise
        raise failed(backend, 0, error) from error
    except Exception as error:
        if not of_library(error):
            raise
        raise failed(backend, 0, error) from error
    cast(Any, session).options = options
    return session


def resolved(model: Model, options: BackendOptions) -> BackendOptions:
    """Options as a backend gets them: an exported file knows its only precision.

    Raises:
        UsageError: a precision or a device that is a slip of the pen.
    """
    if options.precision is None and (own := getattr(model, "precision", None)) is not None:
        options = replace(options, precision=str(own))
    for what, given, known, slips in (
        ("precision", options.precision, PRECISIONS, _PRECISION_SLIPS),
        ("device", options.device.partition(":")[0], DEVICES, _DEVICE_SLIPS),
    ):
        if given is not None and given not in known and (meant := slips.get(given.lower())):
            raise UsageError(f"unknown {what} {given!r}, did you mean {meant!r}?")
    return options


def certified_device(session: Session, device: str) -> str:
    """What certificates say of where a session runs: the device that was asked for, but for an address."""
    return str(getattr(session, "place", device))


def import_library(name: str, *, backend: str) -> Any:
    """Import the library that a backend runs on.

    Signals wait: compiled code that sets itself up takes a Ctrl-C for a failure of its own.

    Raises:
        BackendUnavailable: it is not installed, or cannot be loaded; says what brings it.
    """
    try:
        with held_back(), _untold():
            return import_module(name)
    except (ImportError, OSError) as error:  # OSError: the package is there, a library of it is not
        raise _lacks(backend, name, error) from error


@contextmanager
def _untold() -> Iterator[None]:
    """Have OpenVINO find no package to report to its maker with; it has a stub for that case.

    ONNX Runtime goes by an environment variable, which ``runtime/__init__.py`` sets.
    """
    reporter = "openvino_telemetry"
    if reporter in sys.modules:
        yield
        return
    sys.modules[reporter] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop(reporter, None)


def filled(tensor: NDArray[np.float32], items: int) -> NDArray[np.float32]:
    """A batch filled up with zeros to a size that a network is compiled for."""
    if len(tensor) == items:
        return tensor
    whole = np.zeros((items, *tensor.shape[1:]), np.float32)
    whole[: len(tensor)] = tensor
    return whole


def _lacks(backend: str, library: str, error: Exception) -> BackendUnavailable:
    extra = EXTRAS.get(library.partition(".")[0])
    how = f"pip install 'tfswa[{extra}]'" if extra else f"install {library}"
    return BackendUnavailable(f"backend {backend} needs {library} ({error}): {how}, or use another --backend")


def _said(backend: str, name: str, default: Any) -> Any:
    """A class attribute of a backend; the default where its library is missing, or where it does not say."""
    try:
        return getattr(_load(_point(backend)), name, default)
    except BackendUnavailable:
        return default


def _point(backend: str) -> EntryPoint:
    for point in entry_points(group=GROUP):
        if point.name == backend:
            return point
    names = ("auto", *backend_names())
    meant = _BACKEND_SLIPS.get(backend.lower(), backend)
    close = did_you_mean(meant, names) or ":"
    raise UsageError(f"unknown backend {backend!r}{close} choose one of {', '.join(names)}")


def _load(point: EntryPoint) -> type[Session]:
    try:
        return cast(type[Session], load_point(point))
    except ImportError as error:
        raise _lacks(point.name, error.name or "a library", error) from error
