"""The one stream engine: a signal goes in by pushes of any size, finished stems come out.

A cutter makes chunks that overlap of it, a callable separates them, and a fader joins what comes back, by one
``StreamPlan``. It knows neither transforms nor networks. Files, pipes, sockets and parity runs all go through
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import NonFiniteError, TfxError, UsageError
from tfswa.runtime.stream.cutter import Cutter, PlacedChunk
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
        self._cutter, self._fader = Cutter(plan, self._rows), Fader(plan)
        self._waiting: list[PlacedChunk] = []  # fewer than a batch
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
        samples = check_samples(samples, self._rows, self._cutter.received)
        self._closed = True  # an error below leaves the signal unfinished for good
        finished = list(self._separated(self._cutter.push(samples)))
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
        finished = [*self._separated(self._cutter.flush()), *self._run()]
        rest = self._fader.rest(self._cutter.received)
        return self._join(finished if rest is None else [*finished, rest])

    def _expect_open(self) -> None:
        if self._closed:
            raise TfxError("this signal ended, by flush or by an error: make a new OverlapAdd for the next")

    def _join(self, finished: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        if len(finished) == 1:
            return finished[0]
        empty = np.zeros((len(self._stems), self._channels, 0), np.float32)
        return np.concatenate([empty, *finished], axis=-1)

    def _separated(self, chunks: Iterable[PlacedChunk]) -> Iterator[NDArray[np.float32]]:
        """What these finish, batch by batch; chunks that are no whole batch wait."""
        for chunk in chunks:
            self._waiting.append(chunk)
            if len(self._waiting) == self._batch:
                yield from self._run()

    def _run(self) -> Iterator[NDArray[np.float32]]:
        """Separate the chunks that wait: what each of them finishes."""
        chunks, self._waiting = self._waiting, []
        if not chunks:
            return
        outputs = self._checked(self._process(np.stack([chunk.samples for chunk in chunks])), len(chunks))
        for place, (chunk, output) in enumerate(zip(chunks, outputs, strict=True)):
            stems = output if all_finite(output) else self._again(chunk, place, output)
            yield self._fader.add(chunk, stems)

    def _checked(self, outputs: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        expected = (count, len(self._stems), self._channels, self.plan.chunk_samples)
        if outputs.shape != expected or outputs.dtype != np.float32:
            raise TfxError(
                f"process returned {outputs.dtype} {list(outputs.shape)}, not float32 [B, S, C, N] = "
                f"{list(expected)}: its stems, channels or chunk length are not those of this stream"
            )
        return outputs

    def _again(self, chunk: PlacedChunk, place: int, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """Redo a chunk, which was at this place of its batch and whose output is not finite, or raise."""
        bad = Redone(chunk.number, chunk.start, chunk.stop, self._broken(output))
        where = f"chunk {bad.chunk} (samples {bad.start} to {bad.stop})"
        said = f"{where} of {', '.join(bad.stems)} holds NaN or Inf"
        peak = float(np.abs(chunk.samples).max())
        if peak > ABSURD:
            raise NonFiniteError(
                f"{said}: the input peaks at {peak:.3g} there, full scale is 1: mend the input"
            )
        if self._redo is None:
            raise NonFiniteError(f"{said}: compute it in float32, or check the model")
        try:
            output = self._checked(self._redo(chunk.samples[np.newaxis], place), 1)[0]
        except NonFiniteError as error:
            raise NonFiniteError(f"{said}: {error}") from error
        self.redone.append(bad)
        if not all_finite(output):
            raise NonFiniteError(f"{said}, in float32 too: check the model")
        return output

    def _broken(self, output: NDArray[np.float32]) -> tuple[str, ...]:
        named = zip(self._stems, output, strict=True)
        return tuple(name for name, stem in named if not np.isfinite(stem).all())
