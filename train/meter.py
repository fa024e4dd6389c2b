"""What a row of the training log holds: means since the last row, and where the time went."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tfswa.train.data.loader import Batch


class Meter:
    """Means of what is logged since the last row, and where the time went.

    Args:
        rate: samples per second of the audio.
    """

    def __init__(self, rate: int):
        self.rate = rate
        self.reset()

    def reset(self) -> None:
        """Begin a new row."""
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._audio = self._waited = self._busy = self._loading = self._loaded = 0.0

    @property
    def audio_seconds_per_second(self) -> float:
        """Audio trained on per second of training and waiting, validations left out."""
        return self._audio / self._elapsed

    @property
    def _elapsed(self) -> float:
        return max(self._busy + self._waited, 1e-9)

    def timed(self, source: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on, and take the time that is spent waiting for them."""
        while True:
            begin = time.perf_counter()
            batch = next(source, None)
            self._waited += time.perf_counter() - begin
            if batch is None:
                return
            self._began = time.perf_counter()
            yield batch

    def add(self, row: dict[str, float], batch: Batch, whole: int) -> None:
        """Take in one step; ``whole`` is the number of chunks of all processes."""
        for name, value in row.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        seconds = batch.stems.shape[-1] / self.rate
        self._audio += whole * seconds
        self._loading += batch.seconds * len(batch.stems)
        self._loaded += len(batch.stems) * seconds
        self._busy += time.perf_counter() - self._began

    def row(self) -> dict[str, float]:
        """Means since the last row, speeds in audio seconds per second, share of the time spent waiting."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        return {
            **means,
            "x_realtime": self.audio_seconds_per_second,
            "loader_wait_share": self._waited / self._elapsed,
            "loader_x_realtime_each": self._loaded / max(self._loading, 1e-9),
        }
