"""The fader: of chunks that overlap, the weighted mean of their kept parts, as far as it is finished."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.stream.cutter import PlacedChunk
from tfswa.runtime.stream.plan import StreamPlan, Weights

Audio = NDArray[np.float32]


class Fader:
    """Takes the stems of a signal's chunks in order.

    The mean goes on with each chunk, from the old mean toward the new value by the new one's part of the
    weight: where chunks agree, the result is that value exactly, and a sample of one chunk is that chunk's,
    whatever its weight. So the signal neither fades in nor out.

    Args:
        plan: where chunks lie, and how much each counts.

    Attributes:
        weights: of chunk 0 and of the others.
    """

    def __init__(self, plan: StreamPlan):
        self.weights: list[Weights] = [plan.weights(first=True), plan.weights(first=False)]
        self._plan = plan
        self._tail: Audio | None = None  # the mean of what later chunks may still change
        self._behind = np.zeros(plan.kept - plan.step)  # weight that it has
        self._at = 0  # its first sample in the signal

    def add(self, chunk: PlacedChunk, stems: Audio) -> Audio:
        """The next chunk's stems ``[S, C, N]``, not modified, to what they finish, ``[S, C, m]``."""
        plan, first = self._plan, self._tail is None
        start = plan.context_samples + chunk.shift
        # Behind a chunk that began before its place there is no signal.
        mean = np.zeros((*stems.shape[:-1], plan.kept), np.float32)
        kept = stems[..., start : start + plan.kept]
        mean[..., : kept.shape[-1]] = kept
        weights = self.weights[not first].copy()
        if self._tail is not None:
            met = plan.kept - plan.step
            own = weights[:met].copy()
            weights[:met] += self._behind
            part = np.divide(own, weights[:met], out=np.zeros(met), where=weights[:met] > 0)
            head = mean[..., :met]
            head[...] = self._tail + part.astype(np.float32) * (head - self._tail)
        self._tail, self._behind = mean[..., plan.step :].copy(), weights[plan.step :]
        place = chunk.place + plan.context_samples
        self._at = place + plan.step
        return _within(mean[..., : plan.step], place, chunk.stop).copy()

    def rest(self, length: int) -> Audio | None:
        """What is left once the signal of this length is complete; None where it had no chunk."""
        return None if self._tail is None else _within(self._tail, self._at, length)


def _within(audio: Audio, place: int, length: int) -> Audio:
    """What lies in a signal of this length, of what lies at a place in it or before it."""
    return audio[..., max(0, -place) : max(0, length - place)]
