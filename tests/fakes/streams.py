"""Models without a network, for tests of what several do together: stream engines around a function."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.stream.overlap import OverlapAdd, Process
from tfswa.runtime.stream.plan import ChunkPlan
from tfswa.runtime.stream.separating import Separating, SignalStream

Audio = NDArray[np.float32]


class PlainStream(OverlapAdd):
    """Nothing is spent in a network."""

    network_seconds = 0.0


class PlainModel(Separating):
    """A model whose network is a function of chunks ``[B, C, N] -> [B, S, C, N]``.

    Without one it is ``awkward`` with the seed, which no two models share.
    """

    def __init__(
        self,
        plan: Any = None,
        stems: Sequence[str] = ("vocals", "other"),
        *,
        name: str = "plain",
        seed: int = 0,
        batch: int = 1,
        process: Process | None = None,
        channels: int = 2,
        sample_rate: int = 8000,
    ):
        self.plan = ChunkPlan(64, 4, 6, 4) if plan is None else plan
        self.name, self.stems = name, tuple(stems)
        self.channels, self.sample_rate, self.batch = channels, sample_rate, batch
        self.process = process or awkward(len(self.stems), seed)
        self.closed = 0

    @property
    def parts(self) -> Any:
        return (self,)

    @property
    def description(self) -> str:
        return f"{self.name} in plain numpy"

    @property
    def recomputed_by(self) -> str | None:
        return None

    def stream(self) -> SignalStream:
        return PlainStream(
            self.process, channels=self.channels, stems=self.stems, plan=self.plan, batch=self.batch
        )

    def close(self) -> None:
        self.closed += 1


def awkward(stems: int, seed: int = 0) -> Process:
    """Depends on the place in the chunk and on all of the chunk, so that neighbors disagree."""
    gains = np.random.default_rng(seed).uniform(0.2, 1.0, stems).astype(np.float32)

    def process(chunks: Audio) -> Audio:
        out = np.empty((len(chunks), stems, *chunks.shape[1:]), np.float32)
        place = np.cos(np.arange(chunks.shape[-1], dtype=np.float32) * np.float32(0.37 + seed))
        for chunk, found in zip(chunks, out, strict=True):
            for stem, gain in enumerate(gains):
                found[stem] = gain * place * np.tanh(3 * chunk) + np.float32(0.1) * np.abs(chunk).mean()
        return out

    return process


def noise(samples: int, seed: int = 0, channels: int = 2) -> Audio:
    return np.random.default_rng(seed).uniform(-1.0, 1.0, (channels, samples)).astype(np.float32)


def pushed(stream: SignalStream, signal: Audio, sizes: Iterator[int]) -> Audio:
    """Push in pieces of the sizes given, the rest at once; nothing stays out longer than the stream says."""
    parts, taken, returned = [], 0, 0
    while taken < signal.shape[1]:
        size = next(sizes, signal.shape[1])
        parts.append(stream.push(signal[:, taken : taken + size]))
        taken = min(taken + size, signal.shape[1])
        returned += parts[-1].shape[-1]
        assert 0 <= taken - returned <= stream.latency_samples
    parts.append(stream.flush())
    return np.concatenate(parts, axis=-1)
