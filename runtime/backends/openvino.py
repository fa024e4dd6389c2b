"""The ``openvino`` backend: an ONNX graph in OpenVINO, on the CPU, in float32, bfloat16, and with INT8.

``fp32`` and ``bf16`` run the float32 graph; in bfloat16 OpenVINO rounds inside its kernels, which is what
makes it about twice as fast on CPUs that have the instructions. ``int8`` and ``mixed`` run the graph with
Q/DQ pairs; what they do not quantize is computed in float32 or in bfloat16, all of it: a plan that asks for
both is refused in ``mixed``. Shapes are static: that is
faster than a free batch.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.backends import BackendOptions, filled, import_library
from tfswa.runtime.errors import BackendUnavailable, BundleError, UsageError
from tfswa.runtime.files import caches
from tfswa.runtime.files.hashes import sha256_of_json
from tfswa.runtime.machine import cores, int8_instructions, user_cache
from tfswa.runtime.model.spec import INPUT

if TYPE_CHECKING:
    from tfswa.runtime.model.opening import Model

logger = logging.getLogger(__name__)

_core: Any = None
_core_lock = threading.Lock()

TYPES = {"fp32": "f32", "bf16": "bf16", "int8": "f32", "mixed": "bf16"}
GRAPHS = {"fp32": "fp32", "bf16": "fp32", "int8": "int8", "mixed": "int8"}  # precision of the artifact


class OpenvinoSession:
    """Runs a bundle's ``model.onnx``, ``model.int8.onnx`` or an exported file; see ``Session``.

    A network is compiled for the largest batch that was seen; smaller ones are filled up with silence.
    What was compiled is kept in the user's cache, by graph, precision, batch, threads, version and CPU, and
    taken from there only if it is what this machine put there (``files/caches.py``).

    Raises:
        BackendUnavailable: openvino, the device, the precision on this CPU, or the artifact is missing.
        BundleError: the graph cannot be loaded.
    """

    name = "openvino"
    precisions = tuple(TYPES)
    artifact: tuple[str, str]
    description: str
    versions: Mapping[str, str]

    def __init__(self, model: Model, options: BackendOptions):
        openvino = import_library("openvino", backend="openvino")
        self.precision = options.precision or "fp32"
        if self.precision not in TYPES:
            raise UsageError(
                f"backend openvino has no precision {self.precision!r}: choose {', '.join(TYPES)}"
            )
        self._core: Any = process_core()
        _check_device(self._core, options.device, self.precision)
        self.artifact = model.artifact("onnx", GRAPHS[self.precision])
        self._path, self._spec = model.file(self.artifact[0]), model.spec
        self._threads = options.threads or cores()
        self.versions = {"openvino": openvino.__version__}
        if GRAPHS[self.precision] == "int8":  # its numbers depend on them, so a certificate is bound to them
            self.versions = {**self.versions, "int8 by": int8_instructions()}
        self.description = f"openvino {openvino.__version__}, {self.precision} on {options.device}"
        if self.precision == "mixed":
            _check_plan(model, self.artifact[0])
            self.description = f"openvino {openvino.__version__}, int8 and bf16 on {options.device}"
        self._cpu = str(self._core.get_property("CPU", "FULL_DEVICE_NAME"))
        self._batch, self._request = 0, None
        self._compile(1)

    def infer(self, given: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """What the network takes to what it gives; see ``Session``."""
        items = len(given[INPUT])
        if items > self._batch:
            self._compile(items)
        request: Any = self._request
        feeds = {name: filled(given[name], self._batch) for name in self._spec.takes}
        found = request.infer(feeds, share_inputs=True)
        return {name: found[name][:items].copy() for name in self._spec.gives}

    def close(self) -> None:
        """Release the network."""
        self._request = self._core = None

    def _compile(self, batch: int) -> None:
        """Make the network ready for a batch."""
        try:
            network = self._core.read_model(self._path)
            network.reshape({name: [batch, *shape] for name, shape in self._spec.takes.items()})
            with _kept(cache_folder() / self._key(batch)) as kept:
                compiled = self._core.compile_model(network, "CPU", {**self._settings(), **kept})
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise BundleError(f"{self._path} cannot be loaded by openvino: {reason}") from error
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if hint != TYPES[self.precision]:
            raise BackendUnavailable(
                f"precision {self.precision} asked for, openvino computes in {hint}: choose --precision fp32"
            )
        for name, shape in self._spec.gives.items():
            found, wanted = list(compiled.output(name).shape), [batch, *shape]
            if found != wanted:
                raise BundleError(f"{self._path.name} has shape {found} of {name}, its spec says {wanted}")
        self._request, self._batch = compiled.create_infer_request(), batch

    def _settings(self) -> dict[str, Any]:
        return {
            "INFERENCE_PRECISION_HINT": TYPES[self.precision],
            "INFERENCE_NUM_THREADS": self._threads,
            "PERFORMANCE_HINT": "LATENCY",
        }

    def _key(self, batch: int) -> str:
        """Name of what is compiled: all that it depends on."""
        key = {
            "onnx_sha256": self.artifact[1],
            "precision": self.precision,
            "batch": batch,
            "threads": self._threads,
            "version": self.versions["openvino"],
            "cpu": self._cpu,
        }
        return sha256_of_json(key)[:16]


def process_core() -> Any:
    """OpenVINO's core: one for the process, and for as long as it lives.

    The CPU plug-in gives the thread that loads it memory to handle signals on (``sigaltstack``), and frees it
    with the last core, in whichever thread that goes: the next signal, such as Ctrl-C, would then end the
    process without a word (seen with 2026.4).

    Raises:
        BackendUnavailable: openvino is missing.
    """
    global _core
    openvino = import_library("openvino", backend="openvino")
    with _core_lock:
        if _core is None:
            _core = openvino.Core()
        return _core


def cache_folder() -> Path:
    """Where compiled networks are kept."""
    return user_cache() / "openvino"


@contextmanager
def _kept(place: Path) -> Iterator[dict[str, str]]:
    """The setting that keeps what is compiled in a block; none where the place cannot be written."""
    with ExitStack() as stack:
        try:
            stack.enter_context(caches.compiled(place))
        except OSError as error:
            logger.info("%s cannot be written (%s): compiled anew each time", place, error.strerror)
            yield {}
            return
        yield {"CACHE_DIR": str(place)}


def _check_plan(model: Model, name: str) -> None:
    """Of a bundle's graph it is known what its precision plan keeps in float32."""
    kept = model.bundle.files[name].details.get("plan") if model.bundle is not None else None
    if isinstance(kept, list) and kept:
        raise BackendUnavailable(
            f"the plan of {name} keeps {len(kept)} groups of layers in fp32, openvino's mixed has all "
            "that is not int8 in bf16: use --precision int8, whose rest is fp32"
        )


def _check_device(core: Any, device: str, precision: str) -> None:
    if device != "cpu":
        raise BackendUnavailable(
            f"device {device} asked for, openvino runs on the CPU alone: use --device cpu"
        )
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if TYPES[precision] == "bf16" and "BF16" not in able:
        other = "fp32" if precision == "bf16" else "int8"
        raise BackendUnavailable(
            f"precision {precision} asked for, this CPU has {', '.join(able)}: choose --precision {other}"
        )
    if GRAPHS[precision] == "int8" and int8_instructions() == "saturating":
        raise BackendUnavailable(
            f"precision {precision} asked for, this CPU has neither VNNI nor AMX: in openvino sums of 8-bit "
            "products saturate, and the stems are others than were measured: choose --precision fp32"
        )
