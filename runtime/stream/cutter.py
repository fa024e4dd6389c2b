"""The cutter: a signal by pushes of any size to the chunks of a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.stream.ends import MirroredEnds
from tfswa.runtime.stream.plan import StreamPlan

Audio = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PlacedChunk:
    """A chunk of a signal, and where it lies.

    Attributes:
        number: from 0.
        place: sample of the signal at which the plan puts its first one; before the signal it is negative.
        stop: one past the last sample of the signal that it covers.
        shift: samples by which it begins before its place, as the signal ends in it.
        samples: float32 ``[C, N]``, new memory.
    """

    number: int
    place: int
    stop: int
    shift: int
    samples: Audio

    @property
    def start(self) -> int:
        """First sample of the signal that it covers."""
        return max(0, self.place)


class Cutter:
    """Cuts one signal; the chunks depend on the signal alone, not on how it was cut into pushes.

    Chunks are cut as they are asked for: what a call gives is to be used up before the next call. Memory is
    that of a chunk, of the borders and the reach of a plan that has them, and of what is pushed at once.

    Args:
        plan: where the chunks lie.
        rows: channels of the signal.

    Attributes:
        received: samples so far.
    """

    def __init__(self, plan: StreamPlan, rows: int):
        self.received = 0
        self._plan = plan
        # What is missing before the first sample is zero: chunk 0's left context, what it keeps there, and
        # what it would reach back to.
        self._first = plan.reach_samples  # place of the next chunk in the buffer
        self._buffer = np.zeros((rows, self._first + plan.chunk_samples), np.float32)
        self._filled = self._first + plan.context_samples + plan.before_samples
        self._ends = MirroredEnds(plan.border_samples, rows)
        self._next = 0  # number of the next chunk

    def push(self, samples: Audio) -> Iterator[PlacedChunk]:
        """Take the next samples ``[C, n]``, not modified, not kept: the chunks that are complete now."""
        self.received += samples.shape[1]
        return self._take(self._ends.push(samples))

    def flush(self) -> Iterator[PlacedChunk]:
        """The signal is complete: the chunks that are left."""
        yield from self._take(self._ends.flush())
        while self._next < self._plan.chunks(self.received + 2 * self._ends.added):
            self._buffer[:, self._filled :] = 0.0
            yield self._cut()

    def _take(self, samples: Audio) -> Iterator[PlacedChunk]:
        """Fill the buffer, and cut a chunk whenever it is full."""
        taken, count = 0, samples.shape[1]
        while taken < count:
            some = min(count - taken, self._buffer.shape[1] - self._filled)
            self._buffer[:, self._filled : self._filled + some] = samples[:, taken : taken + some]
            self._filled += some
            taken += some
            if self._filled == self._buffer.shape[1]:
                yield self._cut()

    def _cut(self) -> PlacedChunk:
        """The next chunk; the buffer moves on."""
        plan = self._plan
        there = max(0, self._filled - self._first)  # of its samples; fewer than N where the signal ends in it
        shift = plan.shift(there)
        begin = self._first - shift
        samples = self._buffer[:, begin : begin + plan.chunk_samples].copy()
        if there < plan.chunk_samples:
            plan.complete(samples, there)
        place = plan.start(self._next) - self._ends.added
        chunk = PlacedChunk(self._next, place, min(self.received, place + plan.chunk_samples), shift, samples)
        remaining = max(0, self._filled - plan.step)
        # Source and target overlap; numpy copies as if they did not.
        self._buffer[:, :remaining] = self._buffer[:, plan.step : plan.step + remaining]
        self._filled = remaining
        self._next += 1
        return chunk
