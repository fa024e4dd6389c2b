"""The one stream engine: a signal goes in by pushes of any size, finished stems come out.

It cuts the signal into chunks that overlap, hands them to a callable and fades what comes back, both by one
``StreamPlan``. It knows neither transforms nor networks. Files, pipes, sockets and parity runs all go through
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import NonFiniteError, TfxError, UsageError
from tfswa.runtime.stream.ends import MirroredEnds
from tfswa.runtime.stream.fader import Fader
from tfswa.runtime.stream.plan import StreamPlan
from tfswa.runtime.stream.samples import all_finite, check_samples

ABSURD = 1e4  # peaks of an input that no full scale explains, 80 dB above it

Process = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Chunks of a mixture, float32 ``[B, C, N]``, to stems, float32 ``[B, S, C, N]``; N is the chunk's length.

The argument is new memory that the callable may keep, and the result is copied before the next call.
"""

Redo = Callable[[NDArray[np.float32], int], NDArray[np.float32]]
"""A chunk, float32 ``[1, C, N]``, and its place in the batch that ``Process`` was given last, to stems
``[1, S, C, N]``.

It leaves the last result of ``Process`` alone. Where it would not help to compute the chunk again, it raises
NonFiniteError with the reason and the advice; the engine puts chunk and stem before them.
"""


@dataclass(frozen=True)
class Redone:
    """A chunk that held NaN or Inf at first and was computed again.

    Attributes:
        chunk: its number, from 0.
        start: first sample of the signal that it covers.
        stop: one past the last.
        stems: the stems that were not finite.
    """

    chunk: int
    start: int
    stop: int
    stems: tuple[str, ...]


class OverlapAdd:
    """Separates one signal; make a new one for the next.

    The result depends on the signal alone: not on how it was cut into pushes, nor on ``batch`` as long
    as ``process`` treats the items of a batch independently. To that end what later chunks may change is held
    back until they arrive or ``flush`` shows that there are none.

    Memory is bounded by ``batch`` chunks of input, what two chunks share, the borders and the reach of a plan
    that has them, and what one call returns.

    Args:
        process: separates a batch of chunks; B is ``batch``, or fewer once ``flush`` is called.
        channels: C.
        stems: names in the order of ``process``'s output.
        plan: where the chunks lie, and how much each counts where kept parts overlap.
        batch: chunks per call of ``process``.
        redo: computes a chunk again, in float32, that came back with NaN or Inf from ``process``; None
            raises at once.
        rows: channels of the signal, where they are not the C of the stems.

    Attributes:
        plan: where the chunks lie.
        redone: the chunks that went through ``redo``, in order.

    Raises:
        UsageError: there is no channel, stem or batch.
    """

    def __init__(
        self,
        process: Process,
        *,
        channels: int,
        stems: Sequence[str],
        plan: StreamPlan,
        batch: int = 1,
        redo: Redo | None = None,
        rows: int | None = None,
    ) -> None:
        if channels < 1 or batch < 1 or not stems:
            raise UsageError(
                f"channels {channels}, batch {batch}, stems {list(stems)}: need at least one each"
            )
        self.plan = plan
        self.redone: list[Redone] = []
        self._process, self._redo = process, redo
        self._channels, self._stems, self._batch = channels, tuple(stems), batch
        self._rows = channels if rows is None else rows
        # What is missing before the first sample is zero: chunk 0's left context, what it keeps there, and
        # what it would reach back to.
        self._first = plan.reach_samples  # place of the next chunk in the buffer
        size = self._first + plan.chunk_samples + (batch - 1) * plan.step
        self._buffer = np.zeros((self._rows, size), np.float32)
        self._filled = self._first + plan.context_samples + plan.before_samples
        self._ends = MirroredEnds(plan.border_samples, self._rows)
        self._fader = Fader(plan)
        self._dropped = 0  # samples that were finished, and lie before the signal
        self._returned = 0
        self._next = 0  # number of the next chunk
        self._received = 0
        self._closed = False

    @property
    def latency_samples(self) -> int:
        """The most samples that can have been pushed and are not yet returned."""
        return self.plan.latency_samples(self._batch)

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the next samples of the signal.

        Args:
            samples: ``[C, n]``, n >= 0, floats with full scale 1; kept as float32. Not modified, not kept.

        Returns:
            float32 ``[S, C, m]``, the stems' next finished samples, often none; the caller's to keep.

        Raises:
            UsageError: no floats, or a wrong shape; nothing was taken.
            AudioError: NaN or Inf in ``samples``; nothing was taken.
            NonFiniteError: a chunk came back with NaN or Inf, also from ``redo`` if there is one.
            TfxError: a wrong shape from ``process``; or ``flush`` was called or an error raised before, after
                which there is no way to go on with this signal.
        """
        self._expect_open()
        samples = check_samples(samples, self._rows, self._received)
        self._closed = True  # an error below leaves the signal unfinished for good
        self._received += samples.shape[1]
        finished = self._take(self._ends.push(samples))
        self._closed = False
        return self._join(finished)

    def flush(self) -> NDArray[np.float32]:
        """Declare the signal complete.

        Returns:
            float32 ``[S, C, m]``, all that is left: the stems are now as long as the signal.

        Raises:
            NonFiniteError, TfxError: as ``push``.
        """
        self._expect_open()
        self._closed = True
        finished = self._take(self._ends.flush())
        chunks = self.plan.chunks(self._received + 2 * self._ends.added)
        while self._next < chunks:
            self._buffer[:, self._filled :] = 0.0
            finished += self._run(min(self._batch, chunks - self._next))
        if self._fader.tail is not None:
            finished.append(self._fader.tail)
        left = self._received - self._returned
        return self._join(finished)[..., :left]  # the last chunk may reach beyond the signal's end

    def _expect_open(self) -> None:
        if self._closed:
            raise TfxError("this signal ended, by flush or by an error: make a new OverlapAdd for the next")

    def _take(self, samples: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Fill the buffer, and empty it whenever it is full; the steps that this finished."""
        finished = []
        taken, count = 0, samples.shape[1]
        while taken < count:
            some = min(count - taken, self._buffer.shape[1] - self._filled)
            self._buffer[:, self._filled : self._filled + some] = samples[:, taken : taken + some]
            self._filled += some
            taken += some
            if self._filled == self._buffer.shape[1]:
                finished += self._run(self._batch)
        return finished

    def _join(self, finished: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Finished steps as one, without what lies before the signal."""
        empty = np.zeros((len(self._stems), self._channels, 0), np.float32)
        joined = finished[0] if len(finished) == 1 else np.concatenate([empty, *finished], axis=-1)
        outside = self.plan.before_samples + self._ends.added - self._dropped
        drop = min(outside, joined.shape[-1])
        self._dropped += drop
        self._returned += joined.shape[-1] - drop
        return joined[..., drop:] if drop else joined

    def _run(self, count: int) -> list[NDArray[np.float32]]:
        """Separate the next ``count`` chunks and move the buffer on; one finished step for each."""
        outputs = self._checked(self._process(self._chunks(0, count)), count)
        steps = []
        for index in range(count):
            output = outputs[index]
            if not all_finite(output):
                output = self._again(index, output)
            steps.append(self._fader.add(self._moved(output, self.plan.shift(self._there(index)))))
        used = count * self.plan.step
        remaining = max(0, self._filled - used)
        # Source and target overlap; numpy copies as if they did not.
        self._buffer[:, :remaining] = self._buffer[:, used : used + remaining]
        self._filled = remaining
        self._next += count
        return steps

    def _chunks(self, first: int, count: int) -> NDArray[np.float32]:
        """``[count, C, N]``, a copy of the chunks from number ``first`` of those that are next."""
        step, length, shift = self.plan.step, self.plan.chunk_samples, self.plan.shift
        there = [self._there(index) for index in range(first, first + count)]
        places = [self._first + index * step - shift(has) for index, has in enumerate(there, first)]
        chunks: NDArray[np.float32] = np.stack([self._buffer[:, at : at + length] for at in places])
        for has, chunk in zip(there, chunks, strict=True):
            if has < chunk.shape[-1]:
                self.plan.complete(chunk, has)
        return chunks

    def _there(self, index: int) -> int:
        """How many samples of a chunk there are: fewer than N where the signal is complete and ends in it."""
        has = self._filled - self._first - index * self.plan.step
        return min(max(0, has), self.plan.chunk_samples)

    @staticmethod
    def _moved(output: NDArray[np.float32], shift: int) -> NDArray[np.float32]:
        """Back to its place, what a chunk gave that began before it; behind it is no signal."""
        if not shift:
            return output
        moved = np.zeros_like(output)
        moved[..., :-shift] = output[..., shift:]
        return moved

    def _checked(self, outputs: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        expected = (count, len(self._stems), self._channels, self.plan.chunk_samples)
        if outputs.shape != expected or outputs.dtype != np.float32:
            raise TfxError(
                f"process returned {outputs.dtype} {list(outputs.shape)}, not float32 [B, S, C, N] = "
                f"{list(expected)}: its stems, channels or chunk length are not those of this stream"
            )
        return outputs

    def _again(self, index: int, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """Redo the chunk at place ``index`` of the buffer, whose ``output`` is not finite, or raise."""
        chunk = self._next + index
        first = self.plan.start(chunk) - self._ends.added
        start, stop = max(0, first), min(self._received, first + self.plan.chunk_samples)
        bad = Redone(chunk, start, stop, self._broken(output))
        said = f"chunk {chunk} (samples {start} to {stop}) of {', '.join(bad.stems)} holds NaN or Inf"
        peak = float(np.abs(self._chunks(index, 1)).max())
        if peak > ABSURD:
            raise NonFiniteError(
                f"{said}: the input peaks at {peak:.3g} there, full scale is 1: mend the input"
            )
        if self._redo is None:
            raise NonFiniteError(f"{said}: compute it in float32, or check the model")
        try:
            output = self._checked(self._redo(self._chunks(index, 1), index), 1)[0]
        except NonFiniteError as error:
            raise NonFiniteError(f"{said}: {error}") from error
        self.redone.append(bad)
        if not all_finite(output):
            raise NonFiniteError(f"{said}, in float32 too: check the model")
        return output

    def _broken(self, output: NDArray[np.float32]) -> tuple[str, ...]:
        named = zip(self._stems, output, strict=True)
        return tuple(name for name, stem in named if not np.isfinite(stem).all())
