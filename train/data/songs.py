"""Songs for training: found on disk, decoded once into the cache, mapped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import AudioError, ConfigError
from tfswa.runtime.escape import shown
from tfswa.runtime.songs.finding import MIXTURE, MIXTURES, REST, SPLITS, SongFiles, find_songs
from tfswa.runtime.songs.loading import length_difference
from tfswa.train.config import DataConfig
from tfswa.train.data.cache import decoded, default_folder
from tfswa.train.data.decode import Decoded, Recording

log = logging.getLogger(__name__)

MOST_DIFFERENCE_SECONDS = 0.1  # between the sources of a song


@dataclass(frozen=True)
class TrainingSong:
    """One song's sources, all of equal length; with ``data.partial`` some of those that are asked for.

    Attributes:
        name: as ``runtime/songs/finding.py`` names it.
        sources: audio by source name, each ``[C, N]`` float32, mapped from disk.
        levels: mean square per span of each source (``decode.Decoded``); measured where it is missing.
    """

    name: str
    sources: Mapping[str, NDArray[np.float32]]
    levels: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """N."""
        return int(next(iter(self.sources.values())).shape[1])


def load_training_songs(
    config: DataConfig,
    sample_rate: int,
    channels: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[TrainingSong], list[TrainingSong]]:
    """Open the songs to train on and those held out.

    Args:
        config: where they are.
        sample_rate: in Hz.
        channels: 1 or 2.
        report: called with the number of sources ready, and of all.

    Raises:
        ConfigError: no such folder or song, a source that is missing (of a song, or with ``partial`` of all),
            sources of different length, a cache that is too small or cannot be written.
        AudioError: nothing to be found, or a file that cannot be decoded.
    """
    sources = sorted({source for group in config.sources.values() for source in group})
    found = _find(config, sources)
    names = [name for name in config.songs or found if name not in config.validation]
    if not names:
        raise ConfigError(
            f"data.root {config.root} leaves no song to train on: of {len(found)} found all are held out"
        )
    chosen = list(dict.fromkeys((*names, *config.validation)))
    held = {name: _sources_of(found[name], sources, config.partial) for name in chosen}
    for source in sources:
        if not any(source in held[name] for name in names):
            raise ConfigError(f"no song to train on has source {source!r}: correct data.sources")
    recordings = {
        (name, source): _recording(found[name], source, sample_rate, channels)
        for name in chosen
        for source in held[name]
    }
    folder = Path(config.cache) if config.cache else default_folder()
    audio = decoded(list(recordings.values()), folder, config.cache_gb * 1e9, report)
    opened = dict(zip(recordings, audio, strict=True))
    songs = {
        name: _song(name, {source: opened[name, source] for source in held[name]}, sample_rate)
        for name in chosen
    }
    return [songs[name] for name in names], [songs[name] for name in config.validation]


def _find(config: DataConfig, sources: list[str]) -> dict[str, SongFiles]:
    """Songs of the split by name; those that the configuration names are among them."""
    root = Path(config.root)
    if not root.exists():
        raise ConfigError(f"data.root {root} is not there: name a folder of songs")
    split = config.split if config.split and any((root / name).is_dir() for name in SPLITS) else None
    try:
        songs = find_songs(root, split, names=sources)
    except AudioError as error:
        raise ConfigError(f"data.root: {error}") from error
    found = {song.name: song for song in songs}
    if len(found) < len(songs):
        raise ConfigError(f"{root} has songs of one name in train and test: choose one by data.split")
    for key in ("validation", "songs"):
        for name in getattr(config, key):
            if name not in found:
                raise ConfigError(f"data.{key}: song {name!r} is not in {root}; it holds {_some(found)}")
    return found


def _some(names: Iterable[str], most: int = 12) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def _sources_of(song: SongFiles, sources: Sequence[str], partial: bool) -> list[str]:
    """Those of the wanted sources that a song has, or can give."""
    if song.fault:
        raise ConfigError(f"song {song.name!r}: {song.fault}")
    there = [source for source in sources if source in song.sources or (source == MIXTURE and song.sources)]
    lacks = [source for source in sources if source not in there]
    if lacks and not (there and partial):
        remedy = "correct data.sources, or leave the song out of data.songs"
        raise ConfigError(
            f"song {song.name!r} has no source {lacks[0]!r}, only {', '.join(song.sources)}: "
            + (f"{remedy}, or allow songs that lack sources with data.partial = true" if there else remedy)
        )
    return there


def _recording(song: SongFiles, source: str, sample_rate: int, channels: int) -> Recording:
    if source in song.sources:
        return Recording((song.sources[source],), sample_rate, channels)
    if source == MIXTURE and song.sources:
        return Recording(tuple(song.sources[part] for part in parts_of(song)), sample_rate, channels)
    raise AssertionError(f"{song.name} has no {source}")  # see _sources_of


def parts_of(song: SongFiles) -> list[str]:
    """Sources that add up to the mixture, as far as their names tell.

    An accompaniment beside its own parts would count twice, and is left out.
    """
    parts = [source for source in song.sources if source not in MIXTURES]
    finer = [source for source in parts if source not in (REST, "vocals")]
    return [source for source in parts if source != REST] if finer and REST in parts else parts


def _song(name: str, audio: Mapping[str, Decoded], sample_rate: int) -> TrainingSong:
    lengths = {source: each.audio.shape[1] for source, each in audio.items()}
    shortest, longest = min(lengths.values()), max(lengths.values())
    if longest - shortest > MOST_DIFFERENCE_SECONDS * sample_rate:
        raise ConfigError(f"song {name!r}: sources differ in length, samples {lengths}: cut them alike")
    difference = length_difference(lengths, sample_rate)
    if difference is not None:
        log.warning("%s: %s: all end with the shortest", shown(name), difference)
    return TrainingSong(
        name,
        {source: each.audio[:, :shortest] for source, each in audio.items()},
        {source: each.levels for source, each in audio.items()},
    )
