"""Engines at work: pieces of a batch go through two slots, so that copies overlap with compute.

    copies in    [piece 0][piece 1]          [piece 2]          [piece 3]
    compute               [piece 0          ][piece 1          ][piece 2          ]
    copies out                               [piece 0]          [piece 1]

A piece's slot is its number modulo two. Before the host gives a slot to the next piece it waits for the last
copy out of it, and everything of the piece before came earlier; so no two pieces ever meet in a buffer.
Several engines compute a piece one after the other, as one; between them it stays on the device.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.backends.chain import End, Link, all_ends, outer_ends
from tfswa.runtime.backends.cuda import CudaGraph, CudaStream, Device, DeviceBuffer, Event, PinnedBuffer
from tfswa.runtime.backends.engines import errors_of, library_logger
from tfswa.runtime.errors import BundleError, CudaError, DeviceMemoryError

logger = logging.getLogger(__name__)

SLOTS = 2


class Execution:
    """Streams, slots and execution contexts of an engine, or of several, one behind the other.

    Args:
        device: where the engines lie, current in this thread.
        library: ``tensorrt`` or ``tensorrt_rtx``.
        stages: the engines, the caller's to release after this.
        smallest: batch that their profiles begin with; smaller pieces are filled up with silence.
        batch: largest piece, not above the end of their profiles.

    Raises:
        DeviceMemoryError: there is not enough memory for that batch; nothing is kept.
        BundleError: an output of an engine is not of the shape that its stage says.
        CudaError: CUDA or the library fails.
    """

    def __init__(self, device: Device, library: Any, stages: Sequence[Link], smallest: int, batch: int):
        self._device, self._library, self._stages = device, library, stages
        self._takes, self._gives = outer_ends(stages)
        self._smallest, self._batch = smallest, batch
        self._scratch: DeviceBuffer | None = None
        with ExitStack() as stack:
            self._stack = stack
            self._copies_in, self._compute, self._copies_out = (
                stack.enter_context(closing(CudaStream(device))) for _ in range(3)
            )
            ends, outside = all_ends(stages), {**self._takes, **self._gives}
            self._slots = [
                stack.enter_context(closing(_Slot(device, ends, outside, batch))) for _ in range(SLOTS)
            ]
            self._configs = [_config(library, stage.engine) for stage in stages]
            for slot in self._slots:  # the first song should not find out that memory is short
                self._run(slot, batch)
            self._stack = stack.pop_all()

    def infer(self, given: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """What the engines take to what they give, by name: float32, of any B items.

        Raises:
            CudaError: CUDA or the library fails.
        """
        wanted = {name: end.shape for name, end in self._takes.items()}
        assert {name: value.shape[1:] for name, value in given.items()} == wanted
        items = len(next(iter(given.values())))
        found = {name: np.empty((items, *end.shape), np.float32) for name, end in self._gives.items()}
        under_way: deque[tuple[_Slot, slice]] = deque()
        self._device.activate()
        try:
            for number, start in enumerate(range(0, items, self._batch)):
                if len(under_way) == SLOTS:
                    _collect(found, *under_way.popleft())
                slot, place = self._slots[number % SLOTS], slice(start, min(start + self._batch, items))
                self._send(slot, {name: value[place] for name, value in given.items()}, place.stop - start)
                under_way.append((slot, place))
            while under_way:
                _collect(found, *under_way.popleft())
        except BaseException:
            self._settle()
            raise
        return found

    def close(self) -> None:
        """Release everything but the engines; calling it twice is harmless."""
        self._stack.close()
        self._configs, self._stages = [], ()

    def _send(self, slot: _Slot, piece: Mapping[str, NDArray[np.float32]], items: int) -> None:
        """Put a piece on its way through a slot that is free."""
        batch = max(items, self._smallest)
        run = self._run(slot, batch)
        for name, end in self._takes.items():
            host = slot.host[name]
            host.array[:items] = piece[name]
            host.array[items:batch] = 0.0
            self._device.copy_in(slot.device[name], host, end.bytes(batch), self._copies_in)
        self._copies_in.record(slot.arrived)
        self._compute.wait(slot.arrived)
        run.launch()
        self._compute.record(slot.computed)
        self._copies_out.wait(slot.computed)
        for name, end in self._gives.items():
            self._device.copy_out(slot.host[name], slot.device[name], end.bytes(items), self._copies_out)
        self._copies_out.record(slot.left)

    def _settle(self) -> None:
        """Wait until no stream touches a buffer any more: after an error they may be freed at once."""
        for stream in (self._copies_in, self._compute, self._copies_out):
            with suppress(CudaError):
                stream.synchronize()

    def _run(self, slot: _Slot, batch: int) -> _Run:
        """The engines bound to a slot for a batch; made when it is first asked for."""
        if batch not in slot.runs:
            with ExitStack() as stack:
                contexts = [
                    self._context(stage, config, slot, batch)
                    for stage, (config, _) in zip(self._stages, self._configs, strict=True)
                ]
                run = stack.enter_context(closing(_Run(self._device, self._library, contexts, self._compute)))
                run.prepare()
                self._stack.enter_context(stack.pop_all())
            slot.runs[batch] = run
        return slot.runs[batch]

    def _context(self, stage: Link, config: Any, slot: _Slot, batch: int) -> Any:
        context = stage.engine.create_execution_context(config)
        if context is None:
            raise failure(self._library, f"made no execution context for batch {batch}")
        bound = all(
            context.set_input_shape(name, (batch, *end.shape)) for name, end in stage.takes.items()
        ) and all(
            context.set_tensor_address(name, slot.device[name].address)
            for name in (*stage.takes, *stage.gives)
        )
        if not bound:
            raise failure(self._library, f"did not take batch {batch}")
        for name, end in stage.gives.items():
            found, wanted = tuple(context.get_tensor_shape(name)), (batch, *end.shape)
            if found != wanted:
                raise BundleError(
                    f"the engine's {name} are {list(found)}, the model's spec says {list(wanted)}: "
                    "export the model and build the engine again"
                )
        needed = context.update_device_memory_size_for_shapes()
        if self._scratch is None or self._scratch.size < needed:
            # Contexts that were bound to a smaller one keep it: it is in their graphs.
            size = max(needed, 1)
            self._scratch = self._stack.enter_context(closing(DeviceBuffer(self._device, size)))
        context.set_device_memory(self._scratch.address, self._scratch.size)
        return context


class _Slot:
    """Memory of one piece on its way, on the device and, of what goes in and out, on the host as well.

    And the points that the piece passes.
    """

    def __init__(self, device: Device, ends: Mapping[str, End], outside: Mapping[str, End], batch: int):
        self.runs: dict[int, _Run] = {}
        with ExitStack() as stack:
            self.host = {
                name: stack.enter_context(closing(PinnedBuffer(device, (batch, *end.shape), end.kind)))
                for name, end in outside.items()
            }
            self.device = {
                name: stack.enter_context(closing(DeviceBuffer(device, end.bytes(batch))))
                for name, end in ends.items()
            }
            self.arrived, self.computed, self.left = (
                stack.enter_context(closing(Event(device))) for _ in range(3)
            )
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Release the memory."""
        self.runs.clear()
        self._stack.close()


class _Run:
    """A context of each engine, bound to a slot and a batch for good, and their CUDA graph if there is one.

    Each has contexts of its own because a graph holds the addresses and shapes that its contexts had, and
    whatever is set anew in a context may change memory that its graphs read. All run on one stream, where
    no two are ever at work at once: that is what lets them share their scratch memory, and computing two
    pieces at once would gain nothing where one fills the GPU.
    """

    def __init__(self, device: Device, library: Any, contexts: list[Any], stream: CudaStream):
        self._device, self._library, self._stream = device, library, stream
        self._contexts = contexts
        self._graph: CudaGraph | None = None

    def prepare(self) -> None:
        """Run once, since a first run does more than those after it, and then record a graph.

        Raises:
            CudaError: the library fails.
        """
        self._enqueue()
        self._stream.synchronize()
        try:
            if all(map(self._is_capturable, self._contexts)):
                self._graph = self._device.capture(self._stream, self._enqueue)
            else:
                logger.info("%s cannot record a CUDA graph: going on without", self._library.__name__)
        except CudaError as error:
            logger.info("no CUDA graph was recorded (%s): going on without", str(error))

    def launch(self) -> None:
        """Put the engines onto the stream."""
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._enqueue()

    def close(self) -> None:
        """Release the graph, then the contexts that it was recorded from."""
        if self._graph is not None:
            self._graph.close()
        self._graph, self._contexts = None, []

    def _is_capturable(self, context: Any) -> bool:
        """Whether a graph can be made of it; TensorRT says it by failing, TensorRT-RTX is to be asked."""
        able: Callable[[int], bool] = getattr(context, "is_stream_capturable", lambda stream: True)
        return able(int(self._stream.handle))

    def _enqueue(self) -> None:
        for context in self._contexts:
            if not context.execute_async_v3(int(self._stream.handle)):
                raise failure(self._library, "could not run the engine")


def failure(library: Any, what: str) -> CudaError:
    """The error for what a library did not do, with the reason that it logged; the next starts afresh."""
    reason = errors_of(library)
    library_logger(library).errors.clear()
    full = "outofmemory" in reason.lower().replace(" ", "")  # "out of memory", "OutOfMemory"
    kind = DeviceMemoryError if full else CudaError
    return kind(f"{library.__name__} {library.__version__} {what}: {reason}")


def _config(library: Any, engine: Any) -> tuple[Any, Any]:
    """How execution contexts are made: their scratch memory is ours, their kernels are final.

    Returns:
        The configuration, and the cache of kernels that it refers to and may not own; None where there is
        no such thing.
    """
    config, cache = engine.create_runtime_config(), None
    config.set_execution_context_allocation_strategy(library.ExecutionContextAllocationStrategy.USER_MANAGED)
    kernels = getattr(library, "DynamicShapesKernelSpecializationStrategy", None)
    if kernels is not None:
        # TensorRT-RTX compiles on the GPU that it runs on. By default it does so behind a run's back and
        # changes kernels later, when a graph has recorded the first ones; the cache spares the second slot.
        config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER
        cache = config.create_runtime_cache()
        config.set_runtime_cache(cache)
    return config, cache


def _collect(found: Mapping[str, NDArray[np.float32]], slot: _Slot, place: slice) -> None:
    """Wait for a piece and put it in its place."""
    slot.left.synchronize()
    for name, whole in found.items():
        whole[place] = slot.host[name].array[: place.stop - place.start]
