"""Where to cut: places at which the sources sound, by the levels measured when they were decoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tfswa.train.data.candidates import Candidates
from tfswa.train.data.decode import LEVEL_SAMPLES, levels_of
from tfswa.train.data.songs import TrainingSong


class Places:
    """Draws a song and a place in it.

    A place that does not sound is drawn again. The last draw is made among those places of its song that
    sound most, so that silence is hit only where the song has nothing else.

    Args:
        songs: to draw from; they may lack sources, which then do not sound.
        sources: names of those that will be asked for.
        activity_db: a source quieter than this over the chunk (dBFS, RMS) does not sound.
        draws: in all; 1 takes any place.
    """

    def __init__(
        self, songs: Sequence[TrainingSong], sources: Sequence[str], activity_db: float, draws: int
    ) -> None:
        self.songs, self.draws = songs, draws
        self.threshold = 10 ** (activity_db / 10)
        self._power = [
            {source: _cumulated(song, source) for source in sources if source in song.sources}
            for song in songs
        ]

    def draw(
        self,
        random: np.random.Generator,
        groups: Sequence[Sequence[str]],
        samples: int,
        candidates: Candidates,
    ) -> tuple[int, int]:
        """Draw a song's index and a first sample with ``samples`` after it, where every group sounds."""
        song = start = 0
        for _ in range(self.draws):
            song = candidates.draw(random)
            start = int(random.integers(self.songs[song].samples - samples + 1))
            spans = np.array([start // LEVEL_SAMPLES])
            if self._sounding(song, groups, spans, samples)[0] == len(groups):
                return song, start
        if self.draws > 1:
            start = self._among_best(random, song, groups, samples)
        return song, start

    def _among_best(
        self, random: np.random.Generator, song: int, groups: Sequence[Sequence[str]], samples: int
    ) -> int:
        last = self.songs[song].samples - samples
        spans = np.arange(last // LEVEL_SAMPLES + 1)
        sounding = self._sounding(song, groups, spans, samples)
        span = int(random.choice(spans[sounding == sounding.max()]))
        return int(random.integers(span * LEVEL_SAMPLES, min((span + 1) * LEVEL_SAMPLES, last + 1)))

    def _sounding(
        self, song: int, groups: Sequence[Sequence[str]], spans: NDArray[np.int64], samples: int
    ) -> NDArray[np.int64]:
        """How many groups have a source that sounds, for chunks that begin at these spans."""
        power = self._power[song]
        count = np.zeros(len(spans), np.int64)
        for group in groups:
            loudest = np.zeros(len(spans))
            for source in group:
                if source not in power:
                    continue
                total = power[source]
                ends = np.minimum(spans + max(1, -(-samples // LEVEL_SAMPLES)), len(total) - 1)
                loudest = np.maximum(loudest, (total[ends] - total[spans]) / np.maximum(ends - spans, 1))
            count += loudest > self.threshold
        return count


def _cumulated(song: TrainingSong, source: str) -> NDArray[np.float64]:
    levels = song.levels.get(source)
    if levels is None:
        levels = levels_of(song.sources[source])
    return np.concatenate(([0.0], np.cumsum(levels, dtype=np.float64)))
