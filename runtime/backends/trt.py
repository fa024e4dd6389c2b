"""The ``trt`` backend: engines that ``tfx build-engine`` put into a bundle, on a GPU.

One implementation over the API that ``tensorrt`` and ``tensorrt_rtx`` share, without torch. An engine is run
only where it was built for, by the version that built it, from the graph that the bundle holds now; and only
after it has given the answer to its self-test.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.backends.cuda import Device
from tfswa.runtime.backends.engines import (
    answer_likeness_db,
    answer_of,
    library_logger,
    probe,
    samples,
)
from tfswa.runtime.backends.trt_choice import built_engines, bundle_of, fitting
from tfswa.runtime.backends.trt_execution import End, Ends, Execution, failure
from tfswa.runtime.errors import BackendUnavailable, BundleError, DeviceMemoryError, UsageError, reason
from tfswa.runtime.gates import gate_for
from tfswa.runtime.model.spec import ModelSpec

if TYPE_CHECKING:
    from tfswa.runtime.model.opening import Model

logger = logging.getLogger(__name__)

TYPES: dict[str, np.dtype[Any]] = {"FLOAT": np.dtype(np.float32), "HALF": np.dtype(np.float16)}
MEGABYTE = 1 << 20


class TrtSession:
    """Runs an engine of a bundle; see ``Session``.

    Raises:
        UsageError: no such precision.
        BackendUnavailable: a library, the GPU, its memory, or an engine that fits all of them is missing.
        BundleError: the engine is damaged, is not the spec's, or fails its self-test.
    """

    name = "trt"
    precisions = ("fp32", "fp16", "bf16", "int8", "mixed")
    device_default = "cuda"
    artifact: tuple[str, str]
    description: str
    versions: Mapping[str, str]

    def __init__(self, model: Model, options: BackendOptions):
        self._precision = options.precision or "fp32"
        if self._precision not in self.precisions:
            raise UsageError(
                f"backend trt has no precision {self._precision!r}: choose {', '.join(self.precisions)}"
            )
        index = _device_index(options.device)
        built = built_engines(model, self._precision)
        device = Device(index)
        self._found = fitting(model, self._precision, built, device)
        self._model, library = model, self._found.library
        self.artifact = (self._found.name, self._found.sha256)
        self.versions = {library.__name__: str(library.__version__)}
        answer = self._answer()
        with ExitStack() as stack:
            self._execution, batch = self._open(device)
            stack.enter_context(closing(self._execution))
            self._self_test(answer, batch)
            self._stack = stack.pop_all()
        self.description = (
            f"{library.__name__} {library.__version__}, {self._precision} on {device.name} ({device.label}), "
            f"batch up to {batch}"
        )

    def infer(self, given: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """What the network takes to what it gives, of any B items; see ``Session``."""
        return self._execution.infer(given)

    def close(self) -> None:
        """Release the engine and its memory."""
        self._stack.close()

    def _open(self, device: Device) -> tuple[Execution, int]:
        """The engine, ready to run, and the largest batch that there is memory for."""
        library, engine = self._found.library, self._deserialized(device)
        ends, smallest, batch = _ends(self._found.name, library, engine, self._model.spec)
        while True:
            try:
                return Execution(device, library, engine, ends, smallest, batch), batch
            except DeviceMemoryError as error:
                if batch == smallest:
                    needed = 2 * batch * ends.item_bytes
                    raise self._full(device, needed + engine.device_memory_size_v2, error) from error
                half = max(smallest, batch // 2)
                reason = str(error)  # the error itself would keep what could not be made in the log
                logger.warning("no memory for batch %d (%s): going on with batch %d", batch, reason, half)
                batch = half

    def _deserialized(self, device: Device) -> Any:
        library = self._found.library
        log = library_logger(library)
        log.errors.clear()
        plan = self._model.file(self._found.name).read_bytes()
        engine = library.Runtime(log).deserialize_cuda_engine(plan)
        if engine is None:
            error = failure(library, f"cannot load {self._found.name}")
            if isinstance(error, DeviceMemoryError):
                raise self._full(device, len(plan), error) from error
            raise BundleError(f"{error}; rebuild it with `{self._found.command} --force`") from error
        return engine

    def _full(self, device: Device, needed: int, error: Exception) -> BackendUnavailable:
        free, total = (size // MEGABYTE for size in device.memory())
        return BackendUnavailable(
            f"{self._found.name} needs about {-(-needed // MEGABYTE)} MB of GPU memory, {device.label} has "
            f"{free} of {total} MB free ({error}): end what else uses it, or use another --device"
        )

    def _answer(self) -> NDArray[np.float32]:
        """What the engine must give in its self-test."""
        name = answer_of(self._found.name)
        if name not in bundle_of(self._model).files:
            raise BackendUnavailable(
                f"{self._found.name} was built without an answer to its self-test, {name}: rebuild it with "
                f"`{self._found.command}`"
            )
        path = self._model.file(name)
        try:  # mapped: a header that declares more than the file holds allocates nothing
            answer: NDArray[np.float32] = np.array(np.load(path, mmap_mode="r"))
        except (OSError, ValueError, EOFError) as error:
            raise BundleError(
                f"{path} is no array ({reason(error)}): rebuild it with `{self._found.command} --force`"
            ) from error
        return answer

    def _self_test(self, answer: NDArray[np.float32], batch: int) -> None:
        """Ask the engine what its bundle knows the answer to.

        One item more than the largest batch: both slots, the largest batch and the smallest.
        """
        again = f"rebuild it with `{self._found.command} --force`"
        asked = {name: np.repeat(one, batch + 1, axis=0) for name, one in probe(self._model.spec).items()}
        found = self.infer(asked)
        if not all(np.isfinite(value).all() for value in found.values()):
            raise BundleError(f"{self._found.name} gives NaN or Inf in its self-test on this GPU: {again}")
        given = [{name: value[item] for name, value in found.items()} for item in range(batch + 1)]
        count = samples(given[0]).size
        if answer.shape != (count,):
            name = answer_of(self._found.name)
            raise BundleError(f"{name} has {answer.size} numbers, the engine gives {count}: {again}")
        gate_db = gate_for(self._precision).snr_db
        reached_db = min(answer_likeness_db(answer, item) for item in given)
        if reached_db < gate_db:
            raise BundleError(
                f"{self._found.name} reaches {reached_db:.1f} dB SNR in its self-test, {self._precision} "
                f"must reach {gate_db:g}: {again}"
            )


def _device_index(device: str) -> int:
    kind, _, index = device.partition(":")
    if device == "cpu":
        raise BackendUnavailable("device cpu asked for, engines run on GPUs: use --device cuda")
    if kind != "cuda" or (":" in device and not index.isdecimal()):
        raise BackendUnavailable(f"unknown device {device!r}: engines run on cuda or cuda:N")
    return int(index or 0)


def _ends(name: str, library: Any, engine: Any, spec: ModelSpec) -> tuple[Ends, int, int]:
    """Inputs and outputs of an engine as a model's spec has them; smallest and largest batch."""
    modes = {
        tensor: engine.get_tensor_mode(tensor)
        for tensor in map(engine.get_tensor_name, range(engine.num_io_tensors))
    }
    wanted = dict.fromkeys(spec.takes, library.TensorIOMode.INPUT)
    wanted |= dict.fromkeys(spec.gives, library.TensorIOMode.OUTPUT)
    if modes != wanted:
        raise BundleError(
            f"{name} has the inputs and outputs {', '.join(modes)}, its model's are {' and '.join(wanted)}: "
            "build it with `tfx build-engine`"
        )
    types = {tensor: engine.get_tensor_dtype(tensor).name for tensor in wanted}
    if not set(types.values()) <= set(TYPES):
        said = ", ".join(f"{tensor} {kind}" for tensor, kind in types.items())
        raise BundleError(f"{name} has {said}, each may be {' or '.join(TYPES)}")
    batches = set()
    for tensor, size in spec.takes.items():
        smallest, _, largest = (tuple(shape) for shape in engine.get_tensor_profile_shape(tensor, 0))
        batches.add((smallest[0], largest[0]))
        for shape in (smallest, largest):
            if shape[1:] != size:
                raise BundleError(
                    f"{name} takes {list(shape)}, the model's spec says {[shape[0], *size]}: "
                    "export the model and build the engine again"
                )
    if len(batches) > 1:
        said = " and ".join(f"{smallest} to {largest}" for smallest, largest in sorted(batches))
        raise BundleError(f"{name} takes batches of {said}, by its inputs: build the engine again")
    takes, gives = (
        {tensor: End(shape, TYPES[types[tensor]]) for tensor, shape in ends.items()}
        for ends in (spec.takes, spec.gives)
    )
    return Ends(takes, gives), *batches.pop()
