"""Song folders, MUSDB18-HQ's layout: one folder a song, one file a source; decoded once, then mapped.

root/
  Song A/  vocals.wav  drums.wav  bass.wav  other.wav
  Song B/  ...
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.audio import model_blocks, open_audio
from tfswa.runtime.errors import ConfigError
from tfswa.train.config import DataConfig

ENDINGS = (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".opus", ".aiff")


@dataclass(frozen=True)
class Song:
    """One song's sources, each ``[C, N]`` float32 mapped from disk, all of equal length.

    Attributes:
        name: its folder's name.
        sources: audio by source name.
    """

    name: str
    sources: dict[str, NDArray[np.float32]]

    @property
    def samples(self) -> int:
        """N."""
        return int(next(iter(self.sources.values())).shape[1])


def load_songs(config: DataConfig, sample_rate: int, channels: int) -> tuple[list[Song], list[Song]]:
    """Open the songs to train on and those held out.

    Raises:
        ConfigError: no such folder or song, a source that is missing, sources of different length, a cache
            that cannot be written.
        AudioError: a file that cannot be decoded.
    """
    root = Path(config.root)
    if not root.is_dir():
        raise ConfigError(f"data.root {root} is not a folder")
    found = sorted(
        folder.name for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")
    )
    for name in (*config.validation, *config.songs):
        if name not in found:
            raise ConfigError(f"song {name!r} is not in {root}; it holds {', '.join(found) or 'no folders'}")
    names = [name for name in config.songs or found if name not in config.validation]
    if not names:
        raise ConfigError(f"{root} leaves no song to train on: of {len(found)} found all are held out")
    cache = Path(config.cache) if config.cache else _default_cache()
    sources = sorted({source for group in config.sources.values() for source in group})
    return tuple(
        [_open_song(root / name, sources, cache, sample_rate, channels) for name in group]
        for group in (names, config.validation)
    )  # type: ignore[return-value]


def _open_song(folder: Path, sources: list[str], cache: Path, sample_rate: int, channels: int) -> Song:
    audio = {source: _decoded(_find(folder, source), cache, sample_rate, channels) for source in sources}
    lengths = {source: data.shape[1] for source, data in audio.items()}
    if max(lengths.values()) - min(lengths.values()) > sample_rate // 10:
        raise ConfigError(f"{folder}: sources differ in length, samples {lengths}: cut them alike")
    shortest = min(lengths.values())
    return Song(folder.name, {source: data[:, :shortest] for source, data in audio.items()})


def _find(folder: Path, source: str) -> Path:
    for ending in ENDINGS:
        path = folder / f"{source}{ending}"
        if path.is_file():
            return path
    raise ConfigError(f"{folder} has no {source} file; looked for {source}{{{','.join(ENDINGS)}}}")


def _decoded(path: Path, cache: Path, sample_rate: int, channels: int) -> NDArray[np.float32]:
    """Decode a file once into ``[C, N]`` on disk, and map it."""
    state = path.stat()
    identity = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}|{sample_rate}|{channels}"
    target = cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.npy"
    if not target.exists():
        with open_audio(path) as source:
            blocks = list(model_blocks(source, sample_rate, channels))
        audio = np.concatenate(blocks, axis=1) if blocks else np.zeros((channels, 0), np.float32)
        _save(target, audio)
    mapped: NDArray[np.float32] = np.load(target, mmap_mode="r")
    return mapped


def _save(target: Path, audio: NDArray[np.float32]) -> None:
    work = target.with_name(f".{target.stem}-{os.getpid()}.npy")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            np.save(work, audio)
            os.replace(work, target)
        finally:
            work.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"data.cache {target.parent} cannot be written ({error.strerror}): choose another"
        ) from error


def _default_cache() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("tfswa") / "decoded"
