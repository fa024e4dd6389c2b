"""A signal at its own rate and channels through a model, block by block: what sockets and live use need.

samples -> channels, rate -> stream engine and network -> rate, channels -> stems

Its stems are those that ``separate_file`` writes of the same samples, bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.audio.layouts import output_channels, to_channels
from tfswa.runtime.audio.reading import HIGHEST_RATE, LOWEST_RATE, Resampler
from tfswa.runtime.audio.writing import HELD_SAMPLES
from tfswa.runtime.errors import TfxError, UsageError
from tfswa.runtime.stream.samples import check_samples
from tfswa.runtime.stream.separating import Separating

Audio = NDArray[np.float32]
MOST_CHANNELS = 8


class Transit:
    """One signal on its way, at a sample rate and with channels of its own.

    Args:
        separator: the model, or several that work together.
        sample_rate: of the signal, in Hz.
        channels: of the signal, 1 to 8.
        stems: those that are wanted, in this order; None: all.

    Attributes:
        stems: in the order in which they come out.
        channels: of each stem: 1 of a mono signal, else the model's.
        received: samples so far.
        returned: samples of each stem so far.

    Raises:
        UsageError: a rate or a number of channels that is none, or an unknown stem.
    """

    def __init__(
        self, separator: Separating, *, sample_rate: int, channels: int, stems: Sequence[str] | None = None
    ):
        if not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
            raise UsageError(f"sample rate {sample_rate} must be from {LOWEST_RATE} to {HIGHEST_RATE} Hz")
        if not 1 <= channels <= MOST_CHANNELS:
            raise UsageError(f"{channels} channels: give 1 to {MOST_CHANNELS}")
        self.stems = tuple(separator.stems if stems is None else stems)
        separator.indices(self.stems)  # refuses what it has not
        separator = separator.only(self.stems)
        self._picked = separator.indices(self.stems)
        self.channels = output_channels(channels, separator.channels)
        self.received = self.returned = 0
        self._rows, self._inner = channels, separator.channels
        self._there = Resampler(sample_rate, separator.sample_rate, separator.channels)
        self._back = Resampler(separator.sample_rate, sample_rate, len(self.stems) * self.channels)
        # The resamplers there and back may make a few samples too many.
        held = HELD_SAMPLES if sample_rate != separator.sample_rate else 0
        self._kept = np.zeros((len(self.stems), self.channels, 0), np.float32)
        self._held = held
        self._engine = separator.stream()
        self._closed = False

    def push(self, samples: Audio) -> Audio:
        """The next samples ``[C, n]`` to the stems' next finished ones, ``[S, channels, m]``, often none.

        Raises:
            UsageError: no floats, or a wrong shape; nothing was taken.
            AudioError: NaN or Inf; nothing was taken.
            NonFiniteError, TfxError: as of ``OverlapAdd.push``; the signal is over then.
        """
        self._expect_open()
        block = check_samples(samples, self._rows, self.received)
        self._closed = True  # an error below leaves the signal unfinished for good
        self.received += block.shape[1]
        out = self._out(self._engine.push(self._there.push(to_channels(block, self._inner))))
        self._closed = False
        return out

    def flush(self) -> Audio:
        """Declare the signal complete: the rest, with which each stem is as long as the signal.

        Raises:
            NonFiniteError, TfxError: as of ``push``.
        """
        self._expect_open()
        self._closed = True
        last = self._there.flush()
        parts = [self._out(self._engine.push(last))] if last.shape[1] else []
        self._held = 0
        parts += [self._out(self._engine.flush()), self._return(self._back.flush())]
        whole = np.concatenate(parts, axis=-1)
        length = self.received - (self.returned - whole.shape[-1])
        rest = whole[..., :length]
        rest = np.pad(rest, ((0, 0), (0, 0), (0, length - rest.shape[-1])))
        self.returned = self.received
        return rest

    def _expect_open(self) -> None:
        if self._closed:
            raise TfxError("this signal ended, by flush or by an error: begin another one")

    def _out(self, stems: Audio) -> Audio:
        """Stems of the model to those of the signal."""
        picked = stems[self._picked]
        if self._inner != self.channels:
            mixed = [to_channels(stem, self.channels) for stem in picked]
            picked = np.stack(mixed)
        return self._return(self._back.push(picked.reshape(len(self.stems) * self.channels, -1)))

    def _return(self, rows: Audio) -> Audio:
        """All but what is held back."""
        block = np.concatenate((self._kept, rows.reshape(len(self.stems), self.channels, -1)), axis=-1)
        ready = max(0, block.shape[-1] - self._held)
        self._kept = block[..., ready:].copy()
        self.returned += ready
        return block[..., :ready]
