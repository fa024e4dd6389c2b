"""What a stream through several models needs: blocks of bounded size, and results that wait for each other.

samples --> model a --> rows of a  --+
        --> model b --> rows of b  --+--> what all have, at one place of the signal --> on
                        (waiting)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import NonFiniteError, TfxError
from tfswa.runtime.stream.overlap import Redone
from tfswa.runtime.stream.samples import check_samples

if TYPE_CHECKING:
    from tfswa.runtime.stream.separating import SignalStream

Audio = NDArray[np.float32]

BLOCK_SAMPLES = 1 << 16  # a longer push goes through in pieces, so that no model's whole result has to wait


class Waiting:
    """Results that arrive each at its own time; what all have goes on together.

    Args:
        rows: of each result, how many it has.

    Attributes:
        most_values: the most that ever were left behind by ``take``.
    """

    def __init__(self, rows: Sequence[int]):
        self._held = [np.zeros((count, 0), np.float32) for count in rows]
        self.most_values = 0

    @property
    def values(self) -> int:
        """How many numbers are waiting now."""
        return sum(held.size for held in self._held)

    def put(self, place: int, rows: Audio) -> None:
        """Add what comes next of a result, ``[rows, n]``; kept, not copied, where nothing of it waits."""
        held = self._held[place]
        self._held[place] = np.concatenate((held, rows), axis=1) if held.shape[1] else rows

    def take(self) -> list[Audio]:
        """Of each result ``[rows, n]``, the samples that every one has; n may be 0."""
        count = min(held.shape[1] for held in self._held)
        taken = [held[:, :count] for held in self._held]
        self._held = [held[:, count:].copy() for held in self._held]
        self.most_values = max(self.most_values, self.values)
        return taken


class JoinedStream(ABC):
    """One signal on its way through several models.

    Args:
        streams: what it goes through.
        names: of these, for messages.
        channels: C, of the signal and of each stem.
        stems: S, how many come out.

    Attributes:
        waiting: what one model has and another has not yet.
    """

    waiting: Waiting

    def __init__(
        self, streams: Sequence[SignalStream], names: Sequence[str], *, channels: int, stems: int
    ) -> None:
        self._streams, self._names = tuple(streams), tuple(names)
        self._channels, self._stems = channels, stems
        self._received = 0
        self._closed = False

    @property
    def redone(self) -> list[Redone]:
        """Chunks that were computed again, of all models, in the order of the signal."""
        found = [chunk for stream in self._streams for chunk in stream.redone]
        return sorted(found, key=lambda chunk: (chunk.start, chunk.stop))

    @property
    def network_seconds(self) -> float:
        """CPU time that the calling thread spent in networks."""
        return sum(stream.network_seconds for stream in self._streams)

    @property
    @abstractmethod
    def latency_samples(self) -> int:
        """The most samples that can have been pushed and are not yet returned."""

    @abstractmethod
    def _through(self, samples: Audio) -> Audio:
        """Samples ``[C, n]`` to the stems' next finished ones ``[S, C, m]``."""

    @abstractmethod
    def _rest(self) -> Audio:
        """What is left ``[S, C, m]`` once the signal is complete."""

    def push(self, samples: Audio) -> Audio:
        """Take the next samples; as ``OverlapAdd.push``, a model's NonFiniteError with its name before."""
        self._expect_open()
        samples = check_samples(samples, self._channels, self._received)
        self._closed = True  # an error below leaves the signal unfinished for good
        finished = []
        for start in range(0, samples.shape[1], BLOCK_SAMPLES):
            finished.append(self._through(samples[:, start : start + BLOCK_SAMPLES]))
        self._received += samples.shape[1]
        self._closed = False
        empty = np.zeros((self._stems, self._channels, 0), np.float32)
        return np.concatenate([empty, *finished], axis=-1)

    def flush(self) -> Audio:
        """Declare the signal complete; as ``OverlapAdd.flush``."""
        self._expect_open()
        self._closed = True
        return self._rest()

    def _expect_open(self) -> None:
        if self._closed:
            raise TfxError("this signal ended, by flush or by an error: make a new stream for the next")

    @contextmanager
    def _named(self, place: int) -> Iterator[None]:
        """Say in an error which model it was."""
        try:
            yield
        except NonFiniteError as error:
            raise NonFiniteError(f"{self._names[place]}: {error}") from error
