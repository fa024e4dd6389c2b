"""The ends of a signal, mirrored before it is cut."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Audio = NDArray[np.float32]


class MirroredEnds:
    """Puts a border before a signal and one behind it, each the signal mirrored at its first or last sample.

    Only a signal longer than both borders has them, so that as much is held back until that is known; later
    as much as one border.

    Args:
        border: samples of each; with 0 all goes through as it is.
        channels: C.

    Attributes:
        added: samples put before the signal: 0 until that is known, and for a short one for good.
    """

    def __init__(self, border: int, channels: int):
        self.added = 0
        self._border = border
        self._held: list[Audio] = [np.zeros((channels, 0), np.float32)]  # all, then the last of it

    def push(self, samples: Audio) -> Audio:
        """The next samples ``[C, n]`` to what may be cut next; not modified, not kept."""
        border = self._border
        if not border:
            return samples
        self._held.append(samples.copy())
        if self.added:
            self._forget()
            return samples
        if sum(part.shape[1] for part in self._held) <= 2 * border:
            return samples[:, :0]
        whole = np.concatenate(self._held, axis=1)
        self.added = border
        self._held = [whole]
        self._forget()
        return np.concatenate((whole[:, border:0:-1], whole), axis=1)

    def flush(self) -> Audio:
        """The signal is complete: what is still to be cut."""
        held = np.concatenate(self._held, axis=1)
        if not self.added:
            return held
        last = held[:, -self._border - 1 :]
        return last[:, -2::-1]

    def _forget(self) -> None:
        """Keep the last ``border + 1`` samples, and no part that has none of them."""
        held = sum(part.shape[1] for part in self._held)
        while held - self._held[0].shape[1] > self._border:
            held -= self._held.pop(0).shape[1]
        if len(self._held) == 1:  # maybe long, and the only one
            self._held = [self._held[0][:, -self._border - 1 :].copy()]
