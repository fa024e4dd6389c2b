"""A GPU that is not there: the parts of ``cuda.bindings.runtime`` and ``tensorrt_rtx`` that tfx calls.

It is a hard master. Work on a stream is done as late as the host and the events allow, or, where it is
``greedy``, copies as early as they allow; memory is fresh with NaN; what is used after it was freed, outside
of its bounds, or in a thread with another current device, fails. So a wait that is missing is a wrong answer.
"""

from __future__ import annotations

import enum
import itertools
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[np.float32]]
Network = Callable[[Tensors], Tensors]
Shapes = Mapping[str, tuple[int, ...]]  # by name, without the batch


class Error(enum.IntEnum):
    cudaSuccess = 0  # noqa: N815  CUDA's own names
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815
    cudaErrorStreamCaptureUnsupported = 900  # noqa: N815


@dataclass(eq=False)
class Handle:
    """A stream, an event, a graph."""

    kind: str
    number: int
    work: deque[Callable[[], None]] = field(default_factory=deque)
    done: int = 0  # pieces of work
    recorded: tuple[Handle, int] | None = None  # of an event: a stream, and how much of its work
    recording: list[Callable[[], None]] | None = None  # of a stream under capture, or of a graph
    alive: bool = True

    def __int__(self) -> int:
        return self.number

    @property
    def asked(self) -> int:
        return self.done + len(self.work)


class SimulatedCuda:
    """``cuda.bindings.runtime`` over devices of ``total`` bytes each.

    Attributes:
        log: what was asked for, in order: name and kinds or numbers.
        live: what is open, by kind.
        most: bytes of a device's memory that were used at once.
        fail: called with each function's name before it acts; returns an error to give instead, or None.
    """

    cudaError_t = Error  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out")  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815
    cudaEventDisableTiming, cudaStreamNonBlocking = 2, 1  # noqa: N815

    def __init__(self, devices: int = 1, total: int = 1 << 30, *, greedy: bool = False):
        self.devices, self.total, self.greedy = devices, total, greedy
        self.names = ["NVIDIA Simulated"] * devices
        self.capability = (9, 0)
        self.log: list[tuple[Any, ...]] = []
        self.live: Counter[str] = Counter()
        self.calls = self.most = 0
        self.fail: Callable[[str], Error | None] = lambda name: None
        self._memory: dict[int, NDArray[np.uint8]] = {}
        self._handles: dict[int, Handle] = {}
        self._numbers = itertools.count(1)
        self._thread = threading.local()
        self._sizes: dict[int, int] = {}  # of device memory

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith("cuda") or not callable(value) or isinstance(value, type):
            return value

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls += 1
            error = None if name == "cudaGetErrorString" else self.fail(name)
            if error is not None:
                if name == "cudaStreamEndCapture":  # a stream leaves the recording even then
                    arguments[0].recording = None
                return (error, None)
            result: tuple[Any, ...] = value(*arguments)
            return result

        return call

    # devices

    def cudaGetErrorString(self, error: Error) -> tuple[Any, ...]:  # noqa: N802
        texts = {2: b"out of memory", 100: b"no CUDA-capable device is detected"}
        return Error.cudaSuccess, texts.get(error, b"it failed")

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:  # noqa: N802
        return Error.cudaSuccess, self.devices

    def cudaSetDevice(self, index: int) -> tuple[Any, ...]:  # noqa: N802
        self._thread.current = index
        return (Error.cudaSuccess,)

    def cudaGetDeviceProperties(self, index: int) -> tuple[Any, ...]:  # noqa: N802
        major, minor = self.capability
        properties = SimpleNamespace(name=self.names[index].encode(), major=major, minor=minor)
        return Error.cudaSuccess, properties

    def cudaMemGetInfo(self) -> tuple[Any, ...]:  # noqa: N802
        return Error.cudaSuccess, self.total - self.used, self.total

    @property
    def current(self) -> int:
        return getattr(self._thread, "current", 0)

    @property
    def idle(self) -> bool:
        """Whether all that was asked for is done."""
        return not any(handle.work for handle in self._handles.values())

    @property
    def used(self) -> int:
        return sum(self._sizes.values())

    # memory

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:  # noqa: N802
        assert size > 0
        if self.used + size > self.total:
            return Error.cudaErrorMemoryAllocation, None
        address = next(self._numbers) << 40
        self._memory[address], self._sizes[address] = np.full(size, 0xFF, np.uint8), size
        self.most = max(self.most, self.used)
        self.live["device"] += 1
        return Error.cudaSuccess, address

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:  # noqa: N802
        block = np.full(size, 0xFF, np.uint8)
        self._memory[block.ctypes.data] = block
        self.live["pinned"] += 1
        return Error.cudaSuccess, block.ctypes.data

    def cudaFree(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        self._finish()
        del self._memory[address], self._sizes[address]
        self.live["device"] -= 1
        return (Error.cudaSuccess,)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        self._finish()
        del self._memory[address]
        self.live["pinned"] -= 1
        return (Error.cudaSuccess,)

    def view(self, address: int, size: int) -> NDArray[np.uint8]:
        """Memory from the start of an allocation."""
        block = self._memory[address]
        assert size <= block.size, f"{size} bytes of {block.size}"
        return block[:size]

    # streams and events

    def _make(self, kind: str) -> tuple[Any, ...]:
        handle = Handle(kind, next(self._numbers))
        self._handles[handle.number] = handle
        self.live[kind] += 1
        return Error.cudaSuccess, handle

    def _drop(self, handle: Handle) -> tuple[Any, ...]:
        assert handle.alive, f"{handle.kind} is destroyed twice"
        handle.alive = False
        self.live[handle.kind] -= 1
        del self._handles[handle.number]
        return (Error.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:  # noqa: N802
        return self._make("stream")

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:  # noqa: N802
        return self._make("event")

    cudaStreamDestroy = cudaEventDestroy = cudaGraphDestroy = cudaGraphExecDestroy = _drop  # noqa: N815

    def cudaEventRecord(self, event: Handle, stream: Handle) -> tuple[Any, ...]:  # noqa: N802
        event.recorded = (stream, stream.asked)
        return (Error.cudaSuccess,)

    def cudaStreamWaitEvent(self, stream: Handle, event: Handle, flags: int) -> tuple[Any, ...]:  # noqa: N802
        recorded = event.recorded  # as it is now: a later record does not move the wait
        if recorded is not None:
            self.put(stream, lambda: self._do(*recorded))
        return (Error.cudaSuccess,)

    def cudaEventSynchronize(self, event: Handle) -> tuple[Any, ...]:  # noqa: N802
        self.log.append(("wait", event.number))
        if event.recorded is not None:
            self._do(*event.recorded)
        return (Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: Handle) -> tuple[Any, ...]:  # noqa: N802
        assert stream.recording is None
        self._do(stream, stream.asked)
        return (Error.cudaSuccess,)

    def put(self, stream: Handle, work: Callable[[], None]) -> None:
        """Work for a stream; recorded where it is under capture."""
        assert stream.alive
        if stream.recording is not None:
            stream.recording.append(work)
            return
        stream.work.append(work)

    def _do(self, stream: Handle, upto: int) -> None:
        while stream.done < upto:
            work = stream.work.popleft()
            stream.done += 1
            work()

    def _finish(self) -> None:
        for handle in list(self._handles.values()):
            self._do(handle, handle.asked)

    # copies

    def cudaMemcpyAsync(  # noqa: N802
        self, target: int, source: int, size: int, kind: str, stream: Handle
    ) -> tuple[Any, ...]:
        self.log.append(("copy", kind, size))

        def copy() -> None:
            self.view(target, size)[...] = self.view(source, size)

        self.put(stream, copy)
        if self.greedy and kind == "in":
            self._do(stream, stream.asked)
        return (Error.cudaSuccess,)

    # graphs

    def cudaStreamBeginCapture(self, stream: Handle, mode: int) -> tuple[Any, ...]:  # noqa: N802
        stream.recording = []
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: Handle) -> tuple[Any, ...]:  # noqa: N802
        recorded, stream.recording = stream.recording, None
        code, graph = self._make("graph")
        graph.recording = recorded
        self.log.append(("captured", len(recorded or [])))
        return code, graph

    def cudaGraphInstantiate(self, graph: Handle, flags: int) -> tuple[Any, ...]:  # noqa: N802
        code, executable = self._make("executable")
        executable.recording = graph.recording
        return code, executable

    def cudaGraphLaunch(self, executable: Handle, stream: Handle) -> tuple[Any, ...]:  # noqa: N802
        assert executable.alive
        self.log.append(("launch", executable.number))
        for work in executable.recording or []:
            self.put(stream, work)
        return (Error.cudaSuccess,)


class _Logger:
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)


class SimulatedTensorRt:
    """The runtime half of ``tensorrt_rtx`` on a ``SimulatedCuda``; its engines compute ``network``.

    Attributes:
        takes: shapes of the inputs.
        gives: shapes of the outputs, as the network makes them.
        types: of each of them.
        tensors: which of them are inputs, and which outputs.
        profile: smallest, best and largest batch.
        scratch: from a batch to the bytes that a context needs for it.
        capturable: what contexts answer to ``is_stream_capturable``.
        others: engines that compute something else, by what they are loaded from: libraries that have
            networks, shapes, types and profiles for them.
    """

    ILogger = _Logger
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="ours")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    def __init__(
        self,
        cuda: SimulatedCuda,
        network: Network,
        takes: Shapes,
        *,
        profile: tuple[int, int, int] = (1, 2, 4),
    ):
        self.__name__, self.__version__ = "tensorrt_rtx", "1.7.1.116"
        self.cuda, self.network, self.profile = cuda, network, profile
        made = network({name: np.zeros((1, *shape), np.float32) for name, shape in takes.items()})
        self.takes: Shapes = dict(takes)
        self.gives: Shapes = {name: value.shape[1:] for name, value in made.items()}
        self.tensors = dict.fromkeys(self.takes, "input") | dict.fromkeys(self.gives, "output")
        self.types = dict.fromkeys(self.tensors, "FLOAT")
        self.scratch: Callable[[int], int] = lambda batch: 100 * batch
        self.capturable, self.refuses = True, ""
        self.others: dict[bytes, SimulatedTensorRt] = {}
        self.logger: Any = None
        self.scratch_streams: dict[int, int] = {}  # the stream that each scratch memory is used on

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        assert self.logger in (None, logger), "a library keeps its first logger"
        self.logger = logger
        return SimpleNamespace(deserialize_cuda_engine=self._engine)

    def _engine(self, plan: bytes) -> Any:
        if self.refuses or not plan.startswith(b"engine"):
            logger = self.logger
            logger.log(_Logger.ERROR, self.refuses or "magic tag does not match")
            return None
        return Engine(self, self.others.get(plan, self))


class Engine:
    """``ICudaEngine``; ``part`` has what it computes."""

    def __init__(self, whole: SimulatedTensorRt, part: SimulatedTensorRt):
        self.whole, self.library, self.home = whole, part, part.cuda.current
        library = part
        self.num_io_tensors = len(library.tensors)
        self.device_memory_size_v2 = max(map(library.scratch, library.profile))
        library.cuda.live["engine"] += 1

    def __del__(self) -> None:
        self.library.cuda.live["engine"] -= 1

    def get_tensor_name(self, index: int) -> str:
        return list(self.library.tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return self.library.tensors[name]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.library.types[name])

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        assert index == 0
        return [(batch, *self.library.takes[name]) for batch in self.library.profile]

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, config: RuntimeConfig) -> Context:
        assert config.strategy == "ours", "scratch memory would be allocated twice"
        assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
        assert config.cache is not None
        assert config.cache() is not None, "the cache is gone"
        return Context(self)


class RuntimeCache:
    """``IRuntimeCache``."""


class RuntimeConfig:
    """``IRuntimeConfig``; it does not own its cache."""

    def __init__(self) -> None:
        self.strategy = self.dynamic_shapes_kernel_specialization_strategy = ""
        self.cache: Callable[[], Any] | None = None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> Any:
        return RuntimeCache()

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = weakref.ref(cache)
        return True


class Context:
    """``IExecutionContext``."""

    def __init__(self, engine: Engine):
        self.engine, self.library = engine, engine.library
        self._batches: dict[str, int] = {}  # by input
        self.addresses: dict[str, int] = {}
        self.library.cuda.live["context"] += 1
        self.scratch, self.warm = (0, 0), False

    def __del__(self) -> None:
        self.library.cuda.live["context"] -= 1

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._batches[name] = shape[0]
        smallest, _, largest = self.library.profile
        return shape[1:] == self.library.takes.get(name) and smallest <= shape[0] <= largest

    @property
    def _batch(self) -> int:
        assert self._batches.keys() == self.library.takes.keys(), "not all inputs have a shape"
        (batch,) = set(self._batches.values())
        return batch

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.library.tensors

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self._batch, *self.library.gives[name])

    def update_device_memory_size_for_shapes(self) -> int:
        return self.library.scratch(self._batch)

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = (address, size)

    def is_stream_capturable(self, stream: int) -> bool:
        return self.library.capturable

    def execute_async_v3(self, number: int) -> bool:
        cuda, library = self.library.cuda, self.library
        stream = cuda._handles[number]
        assert cuda.current == self.engine.home, "another device is current"
        address, size = self.scratch
        assert size >= library.scratch(self._batch)
        used_by = self.engine.whole.scratch_streams.setdefault(address, number)
        assert used_by == number, "scratch memory is used by two streams, maybe at once"
        if stream.recording is not None:
            assert self.warm, "a first run cannot be recorded"
        elif library.refuses:
            self.engine.whole.logger.log(_Logger.ERROR, library.refuses)
            return False
        self.warm = True
        cuda.log.append(("enqueue", self._batch))
        batch, addresses = self._batch, dict(self.addresses)
        assert addresses.keys() == library.tensors.keys(), "not all tensors have memory"

        def kind(name: str) -> np.dtype[Any]:
            return np.dtype({"FLOAT": np.float32, "HALF": np.float16}[library.types[name]])

        def compute() -> None:
            cuda.view(address, size)[...] = 0xFF
            given = {}
            for name, item in library.takes.items():
                shape = (batch, *item)
                found = cuda.view(addresses[name], int(np.prod(shape)) * kind(name).itemsize)
                given[name] = found.view(kind(name)).reshape(shape).astype(np.float32)
            with np.errstate(all="ignore"):  # a first run is of memory as it is found
                out = library.network(given)
                made = {name: np.ascontiguousarray(out[name], kind(name)) for name in library.gives}
            for name, value in made.items():
                cuda.view(addresses[name], value.nbytes)[...] = value.reshape(-1).view(np.uint8)

        cuda.put(stream, compute)
        return True
