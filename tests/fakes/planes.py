"""Networks whose tensors are the planes alone: what they take and give without the names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.model.spec import INPUT, OUTPUT

Planes = NDArray[np.float32]
Tensors = Mapping[str, NDArray[np.float32]]


def infer_planes(session: Any, mixture: Planes) -> Planes:
    """``[B, 2*C, T, F] -> [B, S, 2*C, T, F]`` by a session that must give these and nothing else."""
    found = session.infer({INPUT: mixture})
    assert set(found) == {OUTPUT}
    stems: Planes = found[OUTPUT]
    return stems


def planes_session(function: Callable[[Planes], Planes]) -> Callable[[Tensors], dict[str, Planes]]:
    """The ``infer`` of a session that does to planes what ``function`` does."""

    def infer(given: Tensors) -> dict[str, Planes]:
        assert set(given) == {INPUT}
        return {OUTPUT: function(given[INPUT])}

    return infer
