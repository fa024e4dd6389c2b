"""The outline of a stem, for drawing: the lowest and the highest sample of each of some thousand parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.audio.layouts import Block
from tfswa.runtime.audio.reading import open_audio

PARTS = 2048  # at least half as many, of a signal that has so many samples
FIRST = 64  # samples of a part to begin with


class Outline:
    """Takes a signal block by block, and never holds more than ``PARTS`` parts.

    The outline does not depend on where the blocks are cut: parts begin at multiples of their length, which
    doubles whenever there are too many.

    Attributes:
        part: samples of a part; the last one may be shorter.
    """

    def __init__(self) -> None:
        self.part = FIRST
        self._lows = np.zeros(0, np.float32)
        self._highs = np.zeros(0, np.float32)
        self._rest = np.zeros((1, 0), np.float32)

    def push(self, block: Block) -> None:
        """The next samples ``[C, n]``; an outline is of all channels together."""
        held = np.concatenate((self._rest, block), axis=1) if self._rest.size else block
        while count := min(held.shape[1] // self.part, PARTS - len(self._lows)):
            parts = held[:, : count * self.part].reshape(len(held), count, self.part)
            held = held[:, count * self.part :]
            self._lows = np.append(self._lows, parts.min(axis=(0, 2)))
            self._highs = np.append(self._highs, parts.max(axis=(0, 2)))
            if len(self._lows) == PARTS:
                self._lows = self._lows.reshape(-1, 2).min(axis=1)
                self._highs = self._highs.reshape(-1, 2).max(axis=1)
                self.part *= 2
        self._rest = held.copy()

    def found(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The lows and the highs of all parts so far."""
        if not self._rest.size:
            return self._lows, self._highs
        return np.append(self._lows, self._rest.min()), np.append(self._highs, self._rest.max())


def outline_of(path: Path) -> dict[str, object]:
    """The outline of a file, as JSON may hold it.

    Returns:
        ``sample_rate``, ``samples``, ``samples_per_part``, ``lows`` and ``highs``.

    Raises:
        AudioError: it cannot be read.
    """
    outline = Outline()
    with open_audio(path) as audio:
        for block in audio.blocks():
            outline.push(block)
        lows, highs = outline.found()
        return {
            "sample_rate": audio.sample_rate,
            "samples": audio.samples_read,
            "samples_per_part": outline.part,
            "lows": [round(float(low), 4) for low in lows],
            "highs": [round(float(high), 4) for high in highs],
        }
