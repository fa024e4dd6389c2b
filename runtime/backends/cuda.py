"""CUDA without torch: devices, memory, streams, events and graphs, over ``cuda.bindings.runtime``.

Every call is checked. What is opened here is given back by ``close``, which may be called twice; nothing is
left to garbage collection, whose order is not ours. CUDA's current device belongs to a thread: whoever comes
from another thread calls ``Device.activate`` first.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tfswa.runtime.backends import import_library
from tfswa.runtime.errors import BackendUnavailable, CudaError, DeviceMemoryError

logger = logging.getLogger(__name__)


DRIVER = Path("/proc/driver/nvidia/version")  # there where an NVIDIA driver is loaded


class Device:
    """A GPU; made current in the thread that opens it.

    Attributes:
        label: ``cuda:N``.
        name: as the driver has it.
        capability: its compute capability, such as ``9.0``.

    Raises:
        BackendUnavailable: cuda-bindings, a driver, or the device is missing.
    """

    def __init__(self, index: int):
        self._runtime = import_library("cuda.bindings.runtime", backend="trt")
        self._index, self.label = index, f"cuda:{index}"
        try:
            count = self.call("cudaGetDeviceCount")
        except CudaError as error:  # no driver, one that is too old, or no device behind it
            advice = f"{'mend the NVIDIA driver, or ' if DRIVER.exists() else ''}use another --backend"
            raise BackendUnavailable(
                f"device {self.label} asked for, no CUDA device can be used ({error}): {advice}"
            ) from error
        if index >= count:
            how = "use --device cuda" if count else "use another --backend"
            raise BackendUnavailable(f"device {self.label} asked for, {count} CUDA devices found: {how}")
        self.activate()
        properties = self.call("cudaGetDeviceProperties", index)
        self.name = properties.name.decode()
        self.capability = f"{properties.major}.{properties.minor}"

    def activate(self) -> None:
        """Make it the current device of this thread."""
        self.call("cudaSetDevice", self._index)

    def memory(self) -> tuple[int, int]:
        """Free and total memory, in bytes."""
        free, total = self.call("cudaMemGetInfo")
        return free, total

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime.

        Returns:
            What it gives beside its error code: nothing, a value, or a list of values.

        Raises:
            DeviceMemoryError: there is no memory left.
            CudaError: any other code but success.
        """
        code, *values = getattr(self._runtime, name)(*arguments)
        codes = self._runtime.cudaError_t
        if code != codes.cudaSuccess:
            kind = DeviceMemoryError if code == codes.cudaErrorMemoryAllocation else CudaError
            reason = self._runtime.cudaGetErrorString(code)[1].decode()
            raise kind(f"{name} on {self.label} gave {code.name}, {reason}")
        return values if len(values) > 1 else next(iter(values), None)

    def capture(self, stream: CudaStream, enqueue: Callable[[], None]) -> CudaGraph:
        """Record what ``enqueue`` puts on a stream, in place of doing it.

        Raises:
            CudaError: something in it cannot be recorded; the stream is as it was before.
        """
        # Thread-local: what other threads do meanwhile, allocate say, does not spoil the recording.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", stream.handle, mode)
        try:
            enqueue()
        except BaseException:
            with suppress(CudaError):  # a stream leaves the recording even where ending it is an error
                self.call("cudaGraphDestroy", self.call("cudaStreamEndCapture", stream.handle))
            raise
        template = self.call("cudaStreamEndCapture", stream.handle)
        try:
            return CudaGraph(self, self.call("cudaGraphInstantiate", template, 0))
        finally:
            self.call("cudaGraphDestroy", template)

    def copy_in(self, target: DeviceBuffer, source: PinnedBuffer, size: int, stream: CudaStream) -> None:
        """Put a copy from the host onto a stream; ``size`` in bytes, from the start of both."""
        self._copy(target.address, source.address, size, "cudaMemcpyHostToDevice", stream)

    def copy_out(self, target: PinnedBuffer, source: DeviceBuffer, size: int, stream: CudaStream) -> None:
        """Put a copy to the host onto a stream; ``size`` in bytes, from the start of both."""
        self._copy(target.address, source.address, size, "cudaMemcpyDeviceToHost", stream)

    def _copy(self, target: int, source: int, size: int, kind: str, stream: CudaStream) -> None:
        direction = getattr(self._runtime.cudaMemcpyKind, kind)
        self.call("cudaMemcpyAsync", target, source, size, direction, stream.handle)


class _Resource:
    """Something that CUDA made, and the function that takes it back."""

    def __init__(self, device: Device, handle: Any, destroy: str):
        self._device, self._handle, self._destroy = device, handle, destroy

    @property
    def handle(self) -> Any:
        """What CUDA knows it by."""
        assert self._handle is not None, f"{type(self).__name__} is closed"
        return self._handle

    def close(self) -> None:
        """Give it back; calling it twice is harmless. A failure is logged, so that the rest is closed too."""
        handle, self._handle = self._handle, None
        if handle is not None:
            try:
                self._device.call(self._destroy, handle)
            except CudaError as error:
                logger.warning("%s", error)


class DeviceBuffer(_Resource):
    """Memory of a GPU, uninitialized.

    Attributes:
        size: in bytes.

    Raises:
        DeviceMemoryError: the GPU has no more.
    """

    def __init__(self, device: Device, size: int):
        super().__init__(device, device.call("cudaMalloc", size), "cudaFree")
        self.size = size

    @property
    def address(self) -> int:
        """On the device; aligned to 256 bytes."""
        return int(self.handle)


class PinnedBuffer(_Resource):
    """Memory of the host that a GPU copies from and to while the host goes on.

    Attributes:
        array: the memory, of the shape and type asked for; not to be used once the buffer is closed.

    Raises:
        DeviceMemoryError: no more memory can be pinned.
    """

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: DTypeLike):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        super().__init__(device, device.call("cudaMallocHost", size), "cudaFreeHost")
        memory = (ctypes.c_byte * size).from_address(self.address)
        self.array: NDArray[Any] = np.ndarray(shape, dtype, buffer=memoryview(memory))

    @property
    def address(self) -> int:
        """On the host."""
        return int(self.handle)


class Event(_Resource):
    """A point in the work of a stream."""

    def __init__(self, device: Device):
        flags = device._runtime.cudaEventDisableTiming  # cheaper, and no time is read
        super().__init__(device, device.call("cudaEventCreateWithFlags", flags), "cudaEventDestroy")

    def synchronize(self) -> None:
        """Have the host wait until the work before it is done."""
        self._device.call("cudaEventSynchronize", self.handle)


class CudaStream(_Resource):
    """Work that a GPU does in order; streams wait for one another at events alone."""

    def __init__(self, device: Device):
        flags = device._runtime.cudaStreamNonBlocking  # or it would wait for the default stream
        super().__init__(device, device.call("cudaStreamCreateWithFlags", flags), "cudaStreamDestroy")

    def record(self, event: Event) -> None:
        """Set an event behind all the work so far."""
        self._device.call("cudaEventRecord", event.handle, self.handle)

    def wait(self, event: Event) -> None:
        """Have work from now on wait for an event, as it was last recorded."""
        self._device.call("cudaStreamWaitEvent", self.handle, event.handle, 0)

    def synchronize(self) -> None:
        """Have the host wait until all the work is done."""
        self._device.call("cudaStreamSynchronize", self.handle)


class CudaGraph(_Resource):
    """Recorded work, launched as one; made by ``Device.capture``."""

    def __init__(self, device: Device, handle: Any):
        super().__init__(device, handle, "cudaGraphExecDestroy")

    def launch(self, stream: CudaStream) -> None:
        """Put the work onto a stream."""
        self._device.call("cudaGraphLaunch", self.handle, stream.handle)
