"""Training chunks: drawn, augmented and mixed, each a pure function of (seed, index).

Because a chunk depends on nothing but its index, a resumed run, another number of loader processes, or
another machine sees the same data in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from tfswa.runtime.errors import ConfigError
from tfswa.train.config import AugmentConfig, DataConfig
from tfswa.train.data.songs import Song

Audio = NDArray[np.float32]


@dataclass(frozen=True)
class Cut:
    """A place in a song: ``length`` samples from ``start``, played ``speed`` times as fast."""

    song: Song
    start: int
    length: int
    speed: float


class Chunks(Dataset[Tensor]):
    """An endless set of true stems ``[S, C, N]`` float32; their sum over S is the mixture.

    Args:
        songs: to draw from.
        stems: names of the stems, in order.
        data: sources of each stem, and what counts as active.
        augment: what is done to each source.
        samples: N.
        seed: of every draw.

    Raises:
        ConfigError: a song is shorter than a chunk.
    """

    def __init__(
        self,
        songs: Sequence[Song],
        stems: Sequence[str],
        data: DataConfig,
        augment: AugmentConfig,
        samples: int,
        seed: int,
    ):
        longest = math.ceil(samples * augment.speed) + 1
        for song in songs:
            if song.samples < longest:
                raise ConfigError(
                    f"{song.name} has {song.samples} samples, a chunk needs {longest}: lower optim.frames"
                )
        self.songs, self.augment, self.data = list(songs), augment, data
        self.sources = [data.sources[stem] for stem in stems]
        self.samples, self.seed = samples, seed

    def __getitem__(self, index: int) -> Tensor:
        """Draw chunk ``index``."""
        random = np.random.default_rng((self.seed, index))
        remix = random.random() < self.augment.remix
        shared = self._draw(random, self.sources[0][0])
        channels = self.songs[0].sources[self.sources[0][0]].shape[0]
        stems = np.zeros((len(self.sources), channels, self.samples), np.float32)
        for s, group in enumerate(self.sources):
            for source in group:
                cut = self._draw(random, source) if remix else shared
                stems[s] += self._augmented(random, cut, source)
        return torch.from_numpy(stems)

    def _draw(self, random: np.random.Generator, source: str) -> Cut:
        """Draw a place where the source sounds, so far as ``draws`` tries find one."""
        for _ in range(self.data.draws):
            song = self.songs[random.integers(len(self.songs))]
            speed = float(self.augment.speed ** random.uniform(-1, 1))
            length = math.ceil(self.samples * speed)
            start = int(random.integers(song.samples - length + 1))
            if _level_db(song.sources[source][:, start : start + length]) > self.data.activity_db:
                break
        return Cut(song, start, length, speed)

    def _augmented(self, random: np.random.Generator, cut: Cut, source: str) -> Audio:
        """Cut one source and augment it, ``[C, N]``."""
        audio = cut.song.sources[source][:, cut.start : cut.start + cut.length]
        chunk = _resampled(audio, cut.speed, self.samples)
        gain = 10 ** (random.uniform(-1, 1) * self.augment.gain_db / 20)
        if random.random() < self.augment.silence:
            gain = 0.0
        if random.random() < self.augment.channel_swap:
            chunk = chunk[::-1]
        return chunk * np.float32(gain)


def _level_db(audio: Audio) -> float:
    return float(10 * np.log10(np.mean(np.square(audio, dtype=np.float64)) + 1e-12))


def _resampled(audio: Audio, speed: float, samples: int) -> Audio:
    """Read ``audio`` at ``speed`` times its rate: pitch and tempo move together."""
    if speed == 1.0:
        return audio[:, :samples]
    import soxr

    out = soxr.resample(np.ascontiguousarray(audio.T), speed, 1.0, quality="MQ").T[:, :samples]
    if out.shape[1] < samples:
        out = np.pad(out, ((0, 0), (0, samples - out.shape[1])))
    return np.asarray(out, dtype=np.float32)
