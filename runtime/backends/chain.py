"""Graphs one behind the other on a GPU: the transform, the network, and the transform back.

    samples, state.* -> encode -> mixture -> network -> stems, next.* -> decode -> audio, next.*

What one gives and a later one takes stays on the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class End:
    """An input or an output.

    Attributes:
        shape: of one item.
        kind: float32 or float16.
    """

    shape: tuple[int, ...]
    kind: np.dtype[Any]

    def bytes(self, batch: int) -> int:
        """Size of a batch."""
        return batch * math.prod(self.shape) * self.kind.itemsize


@dataclass(frozen=True)
class Link:
    """What computes a graph (an engine, a session of a library), and its inputs and outputs by name."""

    engine: Any
    takes: Mapping[str, End]
    gives: Mapping[str, End]


def all_ends(stages: Sequence[Link]) -> dict[str, End]:
    """Inputs and outputs of a chain, inner ones included."""
    return {
        name: end for stage in stages for ends in (stage.takes, stage.gives) for name, end in ends.items()
    }


def outer_ends(stages: Sequence[Link]) -> tuple[dict[str, End], dict[str, End]]:
    """What a chain takes that none of its stages gives, and what it gives that none of them takes."""
    takes: dict[str, End] = {}
    gives: dict[str, End] = {}
    for stage in stages:
        takes |= {name: end for name, end in stage.takes.items() if name not in gives}
        gives |= stage.gives
    inner = {name for stage in stages for name in stage.takes}
    return takes, {name: end for name, end in gives.items() if name not in inner}


def meet(stages: Sequence[Link]) -> bool:
    """Whether all that share an end have it in the same shape and type."""
    ends = all_ends(stages)
    return all({**ends, **stage.takes, **stage.gives} == ends for stage in stages)
