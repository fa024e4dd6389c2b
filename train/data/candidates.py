"""Which songs a draw is made among, and how often each is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from tfswa.runtime.errors import ConfigError
from tfswa.train.config import SetConfig
from tfswa.train.data.songs import TrainingSong


@dataclass(frozen=True)
class Candidates:
    """Songs in sets: a set is drawn by its share, and a song of it, all alike.

    Attributes:
        songs: indices of the songs of each set; no set is empty.
        limits: shares summed up, the last is 1; empty for one set.
    """

    songs: tuple[tuple[int, ...], ...]
    limits: tuple[float, ...] = ()

    def draw(self, random: np.random.Generator) -> int:
        """Draw a song's index."""
        place = int(np.searchsorted(self.limits, random.random(), side="right")) if self.limits else 0
        songs = self.songs[place]
        return songs[int(random.integers(len(songs)))]


def members_of(sets: Sequence[SetConfig], songs: Sequence[TrainingSong]) -> list[list[int]]:
    """Indices of the songs of each set; nothing where there are no sets.

    Raises:
        ConfigError: a set without a song, a song without a set.
    """
    members: list[list[int]] = [[] for _ in sets]
    for index, song in enumerate(songs if sets else ()):
        for place, one in enumerate(sets):
            if any(fnmatchcase(song.name, pattern) for pattern in one.songs):
                members[place].append(index)
                break
        else:
            raise ConfigError(
                f"song {song.name!r} is in none of data.sets: name it in one, or leave it out of data.songs"
            )
    for place, (one, found) in enumerate(zip(sets, members, strict=True)):
        if not found:
            raise ConfigError(
                f"data.sets[{place}].songs {list(one.songs)} names none of the songs to train on: "
                f"correct it; there are {', '.join(song.name for song in songs[:8])}"
            )
    return members


def by_share(
    sets: Sequence[SetConfig],
    members: Sequence[Sequence[int]],
    songs: Sequence[TrainingSong],
    sources: Sequence[str],
    stem: str,
) -> Candidates:
    """Songs that have one of the sources of a stem.

    Raises:
        ConfigError: there is none, or the shares of the stem leave none.
    """
    having = [index for index, song in enumerate(songs) if song.sources.keys() & set(sources)]
    if not having:
        raise ConfigError(f"no song to train on has {' or '.join(sources)}: correct data.sources")
    if not sets:
        return Candidates((tuple(having),))
    chosen = []
    for one, indices in zip(sets, members, strict=True):
        there = tuple(index for index in indices if index in having)
        if there and one.shares.get(stem, 0.0) > 0:
            chosen.append((there, one.shares[stem]))
    if not chosen:
        raise ConfigError(
            f"data.sets gives {stem} no share of a set whose songs have {' or '.join(sources)}: "
            f"set shares.{stem} above 0 in one that has"
        )
    limits = np.cumsum([share for _, share in chosen])
    return Candidates(tuple(there for there, _ in chosen), tuple(float(x) for x in limits / limits[-1]))


def complete(songs: Sequence[TrainingSong], groups: Sequence[Sequence[str]]) -> Candidates | None:
    """Songs that have something of every stem, all alike; None where there is none."""
    having = [
        index for index, song in enumerate(songs) if all(song.sources.keys() & set(group) for group in groups)
    ]
    return Candidates((tuple(having),)) if having else None
