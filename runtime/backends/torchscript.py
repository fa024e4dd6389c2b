"""The ``torchscript`` backend: a traced network in libtorch."""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.backends import BackendOptions, import_library
from tfswa.runtime.errors import BackendUnavailable, BundleError, reason

if TYPE_CHECKING:
    from torch import device as Device

    from tfswa.runtime.model.opening import Model
    from tfswa.runtime.model.spec import ModelSpec

MATRIX = {"cpu": 2048, "cuda": 8192}  # rows and columns of what a device's ceiling is measured with
MATRIX_ROUNDS = 6


class TorchScriptSession:
    """Runs a bundle's ``model.ts``; see ``Session``.

    Raises:
        BackendUnavailable: torch, the device, or the artifact is missing.
        BundleError: the file cannot be loaded.
    """

    name = "torchscript"
    precisions = ("fp32",)
    artifact: tuple[str, str]
    description: str
    versions: Mapping[str, str]

    def __init__(self, model: Model, options: BackendOptions):
        torch = import_library("torch", backend="torchscript")
        self.artifact = model.artifact("torchscript", options.precision or "fp32")
        self.device = torch_device(options.device)
        self._threads = TorchThreads(options.threads)
        path = model.file(self.artifact[0])
        self._module: Any = load_traced(path, self.device)
        self._spec = model.spec
        self.versions = {"torch": torch.__version__}
        self.description = (
            f"torchscript, torch {torch.__version__}, {options.precision or 'fp32'} on {self.device}"
        )

    def infer(self, given: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """What the network takes to what it gives; see ``Session``."""
        self._threads.apply()
        return run_torch(self._module, self._spec, given, self.device)

    def close(self) -> None:
        """Release the network."""
        self._module = None
        self._threads.restore()


class TorchThreads:
    """CPU threads of torch, which are no session's own.

    torch keeps a number for each thread that calls it, and one that new threads start with. A session sets
    the number of whichever thread calls it, before it computes. When no session holds a number any more, the
    thread that closed the last one has again what was there before the first.

    Args:
        count: as asked for; None leaves them alone.
    """

    _lock = threading.Lock()
    _holders = 0
    _before = 0

    def __init__(self, count: int | None):
        import torch

        self._count = count
        if count is None:
            return
        with TorchThreads._lock:
            if not TorchThreads._holders:
                TorchThreads._before = torch.get_num_threads()
            TorchThreads._holders += 1
        self.apply()

    def apply(self) -> None:
        """Have the calling thread compute with that many."""
        import torch

        if self._count is not None and torch.get_num_threads() != self._count:
            torch.set_num_threads(self._count)

    def restore(self) -> None:
        """Hold them no longer; calling it twice is harmless."""
        import torch

        if self._count is None:
            return
        self._count = None
        with TorchThreads._lock:
            TorchThreads._holders -= 1
            if not TorchThreads._holders:
                torch.set_num_threads(TorchThreads._before)


def run_torch(
    module: Any, spec: ModelSpec, given: Mapping[str, NDArray[np.float32]], device: Device
) -> dict[str, NDArray[np.float32]]:
    """Call a torch module on numpy arrays: by place, in the order of ``ModelSpec.takes`` and ``gives``."""
    import torch

    with torch.inference_mode(), full_float32(device):
        arrays = (np.ascontiguousarray(given[name]) for name in spec.takes)
        found = module(*(torch.from_numpy(array).to(device) for array in arrays))
        each = found if isinstance(found, tuple | list) else (found,)
        if len(each) != len(spec.gives):
            raise BundleError(
                f"the network gives {len(each)} tensors, its spec says {len(spec.gives)}: export it again"
            )
        return {name: out.float().cpu().numpy() for name, out in zip(spec.gives, each, strict=True)}


@contextmanager
def full_float32(device: Device) -> Iterator[None]:
    """Have cuDNN multiply in float32 on a GPU: by default it rounds factors to 10 bits (TF32)."""
    from torch.backends import cudnn

    if device.type != "cuda":
        yield
        return
    others = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    with cudnn.flags(**others, allow_tf32=False):
        yield


def load_traced(path: Path, device: Device) -> Any:
    """Load a traced network.

    Raises:
        BundleError: the file cannot be loaded.
    """
    import torch

    load: Any = torch.jit.load
    with jit_allowed():
        try:
            return load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError) as error:
            raise BundleError(
                f"{path} cannot be loaded by torch {torch.__version__}: {reason(error)}"
            ) from error


@contextmanager
def jit_allowed() -> Iterator[None]:
    """Silence torch 2.13's deprecation of all of torch.jit.

    Nothing else writes what plain libtorch loads, and torch's own compiler uses it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        yield


def matrix_gflop_per_s(precision: str, threads: int | None, device: str) -> float:
    """What a device reaches at best: GFLOP/s of a product of two matrices, the best of several.

    Args:
        precision: fp32, fp16 or bf16.
        threads: of the CPU; None for all.
        device: as for a backend.

    Raises:
        BackendUnavailable: torch is missing, or there is no such device.
    """
    torch = import_library("torch", backend="torch")
    if threads:
        torch.set_num_threads(threads)
    place = torch_device(device)
    size = MATRIX[place.type]
    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    one = torch.randn(size, size).to(place, kind)
    best = math.inf
    for _ in range(MATRIX_ROUNDS):
        start = time.perf_counter()
        one @ one
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def torch_device(name: str) -> Device:
    """Turn ``cpu``, ``cuda`` or ``cuda:N`` into a device that is really there.

    Raises:
        BackendUnavailable: no such device on this machine.
    """
    torch = import_library("torch", backend="torch")
    try:
        device: Device = torch.device(name)
    except RuntimeError:
        raise BackendUnavailable(f"unknown device {name!r}: use cpu, cuda or cuda:N") from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise BackendUnavailable(f"device {name} asked for, {count} CUDA devices found: use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise BackendUnavailable(f"device {name!r} is not supported: use cpu, cuda or cuda:N")
    return device
