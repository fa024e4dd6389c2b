"""Where chunks lie, and how much each counts where several meet: the one object that cutter and fader go by.

``ChunkPlan`` is the model's own: context is discarded, neighbors are cross-faded; ``overlap`` times as many.
Those by which others separate are in ``suites``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import UsageError

if TYPE_CHECKING:
    from tfswa.runtime.model.spec import ModelSpec

Weights = NDArray[np.float64]


class StreamPlan(Protocol):
    """What the stream engine asks of a plan; all lengths are in samples."""

    @property
    def chunk_samples(self) -> int:
        """Length of a chunk."""

    @property
    def context_samples(self) -> int:
        """Discarded at the start of a chunk."""

    @property
    def kept(self) -> int:
        """Kept of a chunk, after its context."""

    @property
    def step(self) -> int:
        """Distance of chunks, at most ``kept``."""

    @property
    def before_samples(self) -> int:
        """How far before the signal's first sample chunk 0 keeps; zeros lie there."""

    @property
    def border_samples(self) -> int:
        """By how much the signal is mirrored at both ends, if it is longer than twice that; 0 for not."""

    @property
    def reach_samples(self) -> int:
        """How far before its place a chunk may begin where the signal ends in it."""

    def chunks(self, samples: int) -> int:
        """How many chunks a signal has, its mirrored ends included; 0 for an empty one."""

    def latency_samples(self, batch: int = 1) -> int:
        """The most samples that can have gone in and are not yet out, with ``batch`` chunks at a time."""

    def start(self, chunk: int) -> int:
        """First sample that a chunk covers, context included; negative for chunk 0."""

    def weights(self, *, first: bool) -> Weights:
        """How much each kept sample of a chunk counts, 0 or more, ``[kept]``; where it is alone it is taken.

        Args:
            first: of chunk 0; else of any other.
        """

    def shift(self, there: int) -> int:
        """By how much a chunk begins before its place, of which the signal has ``there`` samples."""

    def complete(self, chunk: NDArray[np.float32], there: int) -> None:
        """Fill in, in place, the end of a chunk ``[C, N]`` of which the signal has ``there`` samples."""


@dataclass(frozen=True)
class ChunkPlan:
    """Which samples each chunk covers and which of them it keeps.

    Of a chunk the context before and after is discarded; outside the signal it is zero::

                       0 = start of the signal
        chunk 0   [ctx |<------- kept ------->|after]
        chunk 1                     [ctx |<------- kept ------->|after]
        chunk 2                                       [ctx |<------- kept ------->|after]
                                         |fade|            |fade|
                       |       step      |       step      |

    With ``overlap`` 2 or 4 there are that many times as many chunks, at a half or a quarter of the distance,
    the first of them before the signal: every sample is the weighted mean of that many kept parts, or of more
    in fades.

    Attributes:
        chunk_samples: length of a chunk.
        context_samples: discarded at the start of a chunk.
        fade_samples: overlap of kept parts that lie ``overlap`` chunks apart, at most their distance.
        after_samples: discarded at a chunk's end.
        overlap: how many chunks every sample is made of.
    """

    chunk_samples: int
    context_samples: int
    fade_samples: int
    after_samples: int
    overlap: int = 1

    @classmethod
    def of(cls, spec: ModelSpec, overlap: int = 1) -> Self:
        """The plan of a model."""
        lengths = spec.chunk_samples, spec.context_samples, spec.fade_samples, spec.context_after_samples
        return cls(*lengths, overlap)

    def __post_init__(self) -> None:
        least = min(self.context_samples, self.after_samples, self.fade_samples)
        if least < 0 or self._distance < max(self.fade_samples, 1):
            raise UsageError(
                f"context {self.context_samples} + {self.after_samples} and fade {self.fade_samples} leave "
                f"{self._distance} of {self.chunk_samples} samples between chunks: lower them"
            )
        if not 1 <= self.overlap <= self._distance:
            raise UsageError(
                f"overlap {self.overlap} must be from 1 to {self._distance}, the samples between chunks"
            )

    @property
    def _distance(self) -> int:
        """Of kept parts that meet in one fade."""
        return self.kept - self.fade_samples

    @property
    def kept(self) -> int:
        """Samples of a chunk that are kept."""
        return self.chunk_samples - self.context_samples - self.after_samples

    @property
    def step(self) -> int:
        """Distance of chunks, in samples."""
        return self._distance // self.overlap

    @property
    def before_samples(self) -> int:
        """How far before the signal chunk 0 keeps."""
        return (self.overlap - 1) * self.step

    @property
    def border_samples(self) -> int:
        """None: outside the signal are zeros."""
        return 0

    @property
    def reach_samples(self) -> int:
        """None: chunks begin at their places."""
        return 0

    def chunks(self, samples: int) -> int:
        """The fewest chunks that cover every sample ``overlap`` times; 0 for an empty signal."""
        if samples == 0:
            return 0
        if self.overlap > 1:
            return -(-(samples + self.before_samples) // self.step)
        return 1 + max(0, -(-(samples - self.kept) // self.step))

    def latency_samples(self, batch: int = 1) -> int:
        """The most samples that can have gone in and are not yet out, with ``batch`` chunks at a time."""
        return self.kept + self.after_samples + (batch - 1) * self.step - 1

    def start(self, chunk: int) -> int:
        """First sample that a chunk covers, context included; negative for chunk 0."""
        return chunk * self.step - self.before_samples - self.context_samples

    def weights(self, *, first: bool) -> Weights:
        """1, but for linear fades at both ends, of which two that meet sum to 1."""
        weights = np.ones(self.kept)
        if fade := self.fade_samples:
            newer = (np.arange(fade) + 0.5) / fade
            weights[:fade] = newer
            weights[-fade:] = 1.0 - newer
        return weights

    def shift(self, there: int) -> int:
        """None."""
        return 0

    def complete(self, chunk: NDArray[np.float32], there: int) -> None:
        """Zeros, which it has already."""
