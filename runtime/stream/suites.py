"""Where chunks lie by the rules of others, to repeat scores that were published with them.

MsstPlan      the training suite MSST, for most networks
DemucsPlan    the package ``demucs``
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import UsageError
from tfswa.runtime.stream.plan import Weights

MSST_OVERLAPS = (2, 64)  # least and most
DEMUCS_OVERLAP = 0.95  # most


class _Whole:
    """What plans have in common by which all of a chunk is kept."""

    chunk_samples: int

    @property
    def context_samples(self) -> int:
        """None."""
        return 0

    @property
    def kept(self) -> int:
        """All of a chunk."""
        return self.chunk_samples


@dataclass(frozen=True)
class MsstPlan(_Whole):
    """The rule of the training suite MSST, in which scores of many published weights were measured.

    Chunks lie ``chunk // overlap`` apart and count by a window with linear fades of a tenth at both ends,
    chunk 0 without the first. A signal longer than twice the border, ``chunk - step``, is mirrored by the
    border at both ends. What a chunk lacks at the signal's end is mirrored where it has more than half, else
    zero.

    That the last chunk has no fade at its end, as the rule says too, changes nothing here: it has at most
    ``step`` samples of the signal, and its fade lies behind them.

    Attributes:
        chunk_samples: length of a chunk.
        overlap: how many chunks every sample is made of, 2 or more.
    """

    chunk_samples: int
    overlap: int

    def __post_init__(self) -> None:
        low, high = MSST_OVERLAPS
        if not low <= self.overlap <= min(high, self.chunk_samples):
            raise UsageError(f"overlap msst:{self.overlap}: choose msst:{low} to msst:{high}")

    @property
    def step(self) -> int:
        """Distance of chunks, in samples."""
        return self.chunk_samples // self.overlap

    @property
    def before_samples(self) -> int:
        """None: chunk 0 begins with the signal, or with its mirrored border."""
        return 0

    @property
    def border_samples(self) -> int:
        """By how much the signal is mirrored at both ends."""
        return self.chunk_samples - self.step

    @property
    def reach_samples(self) -> int:
        """None: chunks begin at their places."""
        return 0

    def chunks(self, samples: int) -> int:
        """As many as begin within the signal."""
        return -(-samples // self.step)

    def latency_samples(self, batch: int = 1) -> int:
        """Of a chunk, or of what has to be there before the signal is known to be long enough to mirror."""
        return max(2 * self.border_samples, self.chunk_samples + (batch - 1) * self.step - 1)

    def start(self, chunk: int) -> int:
        """First sample that a chunk covers."""
        return chunk * self.step

    def weights(self, *, first: bool) -> Weights:
        """1, but for linear fades from and to 0; chunk 0 has the second of them only."""
        weights = np.ones(self.chunk_samples)
        if fade := self.chunk_samples // 10:
            weights[-fade:] = np.linspace(1.0, 0.0, fade)
            if not first:
                weights[:fade] = np.linspace(0.0, 1.0, fade)
        return weights

    def shift(self, there: int) -> int:
        """None."""
        return 0

    def complete(self, chunk: NDArray[np.float32], there: int) -> None:
        """Mirror a chunk of which more than half is there; else zeros, which it has already."""
        lacking = self.chunk_samples - there
        if there > self.chunk_samples // 2 and lacking:
            # From the last but one backwards; without an end where that is the chunk's first sample.
            end = there - 2 - lacking
            chunk[:, there:] = chunk[:, there - 2 : end if end >= 0 else None : -1]


@dataclass(frozen=True)
class DemucsPlan(_Whole):
    """The rule of the package ``demucs``, without its random shifts.

    Chunks lie ``(1 - overlap)`` of their length apart and count by a triangle. One in which the signal ends
    is moved back, so that what it has of the signal is in its middle: it begins with what came before, and
    ends with zeros. So is the only one of a short signal, which begins with zeros.

    Attributes:
        chunk_samples: length of a chunk.
        overlap: share of a chunk that the next one has too, 0 or more.
    """

    chunk_samples: int
    overlap: float

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= DEMUCS_OVERLAP or self.step < 1:
            raise UsageError(f"overlap demucs:{self.overlap:g}: choose demucs:0 to demucs:{DEMUCS_OVERLAP}")

    @property
    def step(self) -> int:
        """Distance of chunks, in samples."""
        return int((1 - self.overlap) * self.chunk_samples)

    @property
    def before_samples(self) -> int:
        """None: chunk 0 begins with the signal."""
        return 0

    @property
    def border_samples(self) -> int:
        """None: outside the signal are zeros."""
        return 0

    @property
    def reach_samples(self) -> int:
        """Of a chunk that has one sample of the signal."""
        return self.shift(1)

    def chunks(self, samples: int) -> int:
        """As many as begin within the signal."""
        return -(-samples // self.step)

    def latency_samples(self, batch: int = 1) -> int:
        """Of a chunk."""
        return self.chunk_samples + (batch - 1) * self.step - 1

    def start(self, chunk: int) -> int:
        """First sample that a chunk covers, unless it is moved back."""
        return chunk * self.step

    def weights(self, *, first: bool) -> Weights:
        """A triangle, above 0, whose highest point is 1."""
        rising, falling = self.chunk_samples // 2, self.chunk_samples - self.chunk_samples // 2
        triangle = np.concatenate((np.arange(1.0, rising + 1), np.arange(falling, 0.0, -1)))
        return triangle / falling

    def shift(self, there: int) -> int:
        """Half of what the chunk lacks."""
        return (self.chunk_samples - there) // 2

    def complete(self, chunk: NDArray[np.float32], there: int) -> None:
        """Zeros, which it has already."""
