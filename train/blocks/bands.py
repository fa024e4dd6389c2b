"""Bands that overlap, their masks, and complex masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional


class OfAllBands(nn.Module):
    """Masks of bins from those of bands: ``[..., sum of the bands' bins, P] -> [..., F, P]``.

    Args:
        members: the bins of each band.
        bins: F.
        mean: whether a bin in several bands has the mean of their masks; their sum otherwise.
    """

    found_at: Tensor
    share: Tensor

    def __init__(self, members: Sequence[NDArray[np.int64]], bins: int, *, mean: bool = True):
        super().__init__()
        found_at, share = averages(members, bins)
        # Few bins are in many bands: of each turn only the bins from the first to the last that it adds to.
        self.ranges = [(int(used[0]), int(used[-1]) + 1) for used in map(np.flatnonzero, share)]
        self.bins = bins
        self.register_buffer("found_at", torch.tensor(found_at), persistent=False)
        self.register_buffer("share", torch.tensor(share if mean else np.sign(share)), persistent=False)

    def forward(self, masks: Tensor) -> Tensor:
        """See the class."""
        total: Tensor | None = None
        for turn, (start, end) in enumerate(self.ranges):
            part = masks.index_select(-2, self.found_at[turn, start:end]) * self.share[turn, start:end, None]
            if end - start < self.bins:
                part = functional.pad(part, (0, 0, start, self.bins - end))
            total = part if total is None else total + part
        assert total is not None
        return total


def averages(
    members: Sequence[NDArray[np.int64]], bins: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Where the masks of a bin lie among those of all bands, and what share each has in their mean.

    Args:
        members: the bins of each band.
        bins: F.

    Returns:
        Places and shares, both ``[most bands of a bin, F]``; a share is 0 where a bin has fewer.
    """
    places = np.concatenate(members)
    most = int(np.bincount(places, minlength=bins).max())
    found_at = np.zeros((most, bins), np.int64)
    share = np.zeros((most, bins), np.float32)
    for place in range(bins):
        own = np.flatnonzero(places == place)
        found_at[: len(own), place] = own
        share[: len(own), place] = 1 / len(own)
    return found_at, share


def complex_masked(mixture: Tensor, masks: Tensor) -> Tensor:
    """A mixture ``[B, 2*C, T, F]`` times complex masks ``[B, S, 2*C, T, F]``: ``[B, S, 2*C, T, F]``."""
    b, stems, planes, t, bins = masks.shape
    pairs = mixture.reshape(b, 1, planes // 2, 2, t, bins)
    masks = masks.reshape(b, stems, planes // 2, 2, t, bins)
    (re, im), (real, imaginary) = pairs.unbind(3), masks.unbind(3)
    found = torch.stack((re * real - im * imaginary, re * imaginary + im * real), dim=3)
    return found.reshape(b, stems, planes, t, bins)
