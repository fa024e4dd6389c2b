"""Numbers that anyone can make again, so that a recorded vector needs no weights beside it."""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.typing import NDArray


def known(name: str, shape: tuple[int, ...], scale: float = 0.2) -> NDArray[np.float32]:
    """Numbers between ``-scale`` and ``scale``: those of a generator whose seed is the name."""
    state = np.uint64(zlib.crc32(name.encode()))
    count = np.arange(math.prod(shape), dtype=np.uint64)
    mixed = (state + count) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    numbers: NDArray[np.float32] = ((mixed >> np.uint64(40)).astype(np.float64) / 2**23 - 1).astype(
        np.float32
    )
    return (scale * numbers).reshape(shape)
