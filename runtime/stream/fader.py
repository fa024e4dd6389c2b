"""The fader: of chunks that overlap, the weighted mean of their kept parts, as far as it is finished."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.stream.plan import StreamPlan, Weights

Audio = NDArray[np.float32]


class Fader:
    """Takes a signal's chunks in order.

    The mean goes on with each chunk, from the old mean toward the new value by the new one's part of the
    weight: where chunks agree, the result is that value exactly, and a sample of one chunk is that chunk's,
    whatever its weight. So the signal neither fades in nor out.

    Args:
        plan: where chunks lie, and how much each counts.

    Attributes:
        tail: the mean of what later chunks may still change, ``[S, C, kept - step]``; None before chunk 0.
        weights: of chunk 0 and of the others.
    """

    def __init__(self, plan: StreamPlan):
        self.tail: Audio | None = None
        self.weights: list[Weights] = [plan.weights(first=True), plan.weights(first=False)]
        self._plan = plan
        self._behind = np.zeros(plan.kept - plan.step)  # weight that the tail has

    def add(self, output: Audio) -> Audio:
        """The next chunk's stems ``[S, C, N]``, not modified, to the next finished step ``[S, C, step]``."""
        plan = self._plan
        mean = output[..., plan.context_samples : plan.context_samples + plan.kept].copy()
        weights = self.weights[self.tail is not None].copy()
        if self.tail is not None:
            met = plan.kept - plan.step
            own = weights[:met].copy()
            weights[:met] += self._behind
            part = np.divide(own, weights[:met], out=np.zeros(met), where=weights[:met] > 0)
            head = mean[..., :met]
            head[...] = self.tail + part.astype(np.float32) * (head - self.tail)
        self.tail, self._behind = mean[..., plan.step :].copy(), weights[plan.step :]
        return mean[..., : plan.step].copy()
