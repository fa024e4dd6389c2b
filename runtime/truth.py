"""Songs whose true stems are known: a folder of stem files, or a stem file (``.stem.mp4``).

The mixture is always the sum of the stems. What a stem file holds as its mixture is mastered apart, and
differs from that sum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.audio import model_blocks, open_audio
from tfswa.runtime.errors import AudioError
from tfswa.runtime.folders import audio_files
from tfswa.runtime.spec import ModelSpec

Audio = NDArray[np.float32]

STEM_FILE_STREAMS = ("mixture", "drums", "bass", "other", "vocals")  # Native Instruments' order
REST = "accompaniment"
SYNTHETIC_SECONDS = 12.0


@dataclass(frozen=True)
class Song:
    """A mixture, and its true stems where they are known.

    Attributes:
        name: for tables.
        mixture: ``[C, N]`` float32 at the model's rate.
        stems: truth by stem name, each ``[C, N]``; empty where nothing is known.
    """

    name: str
    mixture: Audio
    stems: dict[str, Audio]

    @property
    def sha256(self) -> str:
        """Hash of the samples, which binds evidence to them."""
        digest = hashlib.sha256(np.ascontiguousarray(self.mixture).tobytes())
        for name in sorted(self.stems):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.stems[name]).tobytes())
        return digest.hexdigest()


def load_songs(path: Path, spec: ModelSpec) -> list[Song]:
    """Load what a user points at.

    - a ``.mp4`` with five audio streams: a stem file;
    - any other audio file: a mixture without truth;
    - a folder of stem files (``vocals.wav``, ``drums.flac`` ...): one song;
    - a folder of such folders, or of audio files: several.

    Raises:
        AudioError: nothing there that can be decoded, or a song that lacks a stem of the model.
    """
    if not path.is_dir():
        return [_load_file(path, spec)]
    songs = [song for child in sorted(path.iterdir()) if child.is_dir() for song in _load_folder(child, spec)]
    songs += _load_folder(path, spec)
    if not songs:
        songs = [_load_file(child, spec) for child in audio_files(path)]
    if not songs:
        raise AudioError(f"{path} holds no audio: name an audio file, or a folder of stems")
    return songs


def load_stem_file(path: Path, spec: ModelSpec) -> Song:
    """Load a stem file's four stems; the mixture is their sum.

    Raises:
        AudioError: not a stem file.
    """
    stems = {name: _decode(path, spec, index) for index, name in enumerate(STEM_FILE_STREAMS) if index > 0}
    return _song(path.name.removesuffix(".stem.mp4"), stems, spec)


def example_stem_file() -> Path | None:
    """Find the stem file inside the installed package ``stempeg``, without importing it.

    Importing stempeg needs ffmpeg and ffprobe on PATH; finding a file of it needs nothing.
    """
    try:
        listed = files("stempeg") or []
    except PackageNotFoundError:
        return None
    found = [Path(str(entry.locate())) for entry in listed if entry.name.endswith(".stem.mp4")]
    return next((path for path in sorted(found) if path.is_file()), None)


def synthetic_song(spec: ModelSpec, seconds: float = SYNTHETIC_SECONDS, seed: int = 0) -> Song:
    """Make a music-like song from a seed: a gliding, vibrating voice over chords, drums and noise.

    Its stems are ``vocals`` and the rest; for other stems the truth is unknown.
    """
    random = np.random.default_rng(seed)
    rate = spec.stft.sample_rate
    time = np.arange(int(seconds * rate)) / rate
    note = 220.0 * 2 ** (np.floor(time * 2) * 5 % 12 / 12)
    phase = 2 * np.pi * np.cumsum(note * (1 + 0.01 * np.sin(2 * np.pi * 5.5 * time))) / rate
    voice = sum(np.sin(k * phase) / k for k in range(1, 12)) * (np.sin(2 * np.pi * 0.4 * time) > -0.5)
    chords = sum(np.sin(2 * np.pi * f * time) for f in (110.0, 138.6, 164.8, 277.2))
    beat = np.exp(-30 * (time % 0.5)) * random.standard_normal(len(time))
    rest = 0.05 * chords + 0.25 * beat + 0.003 * random.standard_normal(len(time))
    pan = np.array([[1.0], [0.8]])[: spec.channels]
    stems = {
        "vocals": (0.1 * voice * pan).astype(np.float32),
        REST: (rest * pan[::-1]).astype(np.float32),
    }
    mixture = stems["vocals"] + stems[REST]
    known = set(spec.stems) <= set(stems)
    return Song(f"synthetic, seed {seed}", mixture, stems if known else {})


def _load_file(path: Path, spec: ModelSpec) -> Song:
    with open_audio(path) as audio:
        streams = audio.streams
    if streams == len(STEM_FILE_STREAMS):
        return load_stem_file(path, spec)
    return Song(path.name, _decode(path, spec, 0), {})


def _load_folder(folder: Path, spec: ModelSpec) -> list[Song]:
    """Return one song if the folder holds files named as stems are, none otherwise."""
    names = {*STEM_FILE_STREAMS[1:], REST, *spec.stems}
    named = {path.stem: path for path in audio_files(folder) if path.stem in names}
    if len(named) < 2:
        return []
    if REST in named:  # beside its parts it would count twice
        twice = named.keys() - set(spec.stems) if REST in spec.stems else {REST}
        named = {name: path for name, path in named.items() if name not in twice}
    missing = [stem for stem in spec.stems if stem not in named and stem != REST]
    if missing:
        raise AudioError(
            f"{folder} lacks {', '.join(missing)}, though it holds {', '.join(named)}: "
            "add the files, or take the folder away"
        )
    return [_song(folder.name, {name: _decode(path, spec, 0) for name, path in named.items()}, spec)]


def _song(name: str, sources: dict[str, Audio], spec: ModelSpec) -> Song:
    """Sum sources to the model's stems: a stem by its name, the accompaniment as all that is not vocals."""
    length = max(source.shape[1] for source in sources.values())
    padded = {k: np.pad(v, ((0, 0), (0, length - v.shape[1]))) for k, v in sources.items()}
    mixture = _sum(list(padded.values()))
    stems = {}
    for stem in spec.stems:
        if stem in padded:
            stems[stem] = padded[stem]
        elif stem == REST:
            stems[stem] = _sum([source for key, source in padded.items() if key not in spec.stems])
    return Song(name, mixture, stems)


def _sum(parts: Sequence[Audio]) -> Audio:
    total: Audio = np.stack(parts).sum(axis=0, dtype=np.float64).astype(np.float32)
    return total


def _decode(path: Path, spec: ModelSpec, stream: int) -> Audio:
    with open_audio(path, stream=stream) as audio:
        blocks = list(model_blocks(audio, spec.stft.sample_rate, spec.channels))
    return np.concatenate(blocks, axis=1) if blocks else np.zeros((spec.channels, 0), np.float32)
