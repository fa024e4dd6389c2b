"""What names and shapes of weights say, for kinds of published networks."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import BundleError
from tfswa.train.importers.kinds import Shapes

DIGITS = 12  # of a number in a name: it is as much too large without the others


def numbered(shapes: Shapes, pattern: str) -> int:
    """How many layers there are, counted from 0, by the number that a pattern finds where names begin.

    Raises:
        BundleError: it is found nowhere, or says more layers than there are names: a network of so many
            would be built before anything is missed.
    """
    found = [int(match[1][:DIGITS]) for name in shapes if (match := re.match(pattern, name))]
    if not found:
        raise BundleError(f"no name is like {pattern}: weights are missing, or it is another network")
    if (most := max(found)) >= len(shapes):
        raise BundleError(f"a name like {pattern} counts to {most}, there are {len(shapes)} names")
    return 1 + most


def shape_of(shapes: Shapes, name: str, axes: int) -> tuple[int, ...]:
    """The shape of a weight.

    Raises:
        BundleError: it is missing, or has another number of axes.
    """
    shape = tuple(shapes.get(name, ()))
    if len(shape) != axes or 0 in shape:
        raise BundleError(
            f"{name} is {list(shape) or 'missing'}, {axes} axes are needed: it is another network"
        )
    return shape


def hann(samples: int) -> NDArray[np.float64]:
    """The window that many files hold, ``[samples]``, as long as a transform."""
    window: NDArray[np.float64] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(samples) / samples)
    return window
