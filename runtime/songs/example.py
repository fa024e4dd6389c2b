"""A small set of songs with true stems, so that every command can be tried where there are none.

DIR/one/{mixture,vocals,drums,bass,other}.wav        generated from a seed; so are two and three
DIR/recorded/{mixture,vocals,drums,bass,other}.wav   6 s from PyPI's package stempeg, where it is installed
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from tfswa.runtime.audio.reading import model_blocks, open_audio
from tfswa.runtime.errors import OutputExists
from tfswa.runtime.files.atomic import new_folder
from tfswa.runtime.songs.finding import STEM_FILE_STREAMS
from tfswa.runtime.songs.loading import example_stem_file

RATE = 44_100
SECONDS = 12.0
SYNTHETIC = ("one", "two", "three")
PEAK = 0.9  # of a mixture, full scale is 1
NAMES = ("vocals", "drums", "bass", "other")

Audio = NDArray[np.float32]


def synthetic_sources(seed: int, seconds: float) -> dict[str, Audio]:
    """Make vocals, drums, bass and other, ``[2, N]`` float32 at 44.1 kHz: the same from the same seed."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    beat, root = 0.4 + 0.05 * seed, 55.0 * 2 ** (seed * 3 % 12 / 12)
    step = np.floor(time / beat)

    def tone(hertz: NDArray[np.float64], harmonics: int) -> NDArray[np.float64]:
        phase = 2 * np.pi * np.cumsum(hertz) / RATE
        return np.asarray(np.sum([np.sin(k * phase) / k for k in range(1, harmonics + 1)], axis=0))

    melody = 4 * root * 2 ** ((step * 5 + seed) % 12 / 12) * (1 + 0.01 * np.sin(2 * np.pi * 5.5 * time))
    sings = np.sin(2 * np.pi * 0.2 * time + seed) > -0.6
    chords = sum(tone(np.full_like(time, 2 * root * ratio), 3) for ratio in (1.0, 1.25, 1.5))
    parts = {
        "vocals": (0.16 * tone(melody, 12) * sings, 0.5),
        "drums": (0.3 * np.exp(-30 * (time % beat)) * random.standard_normal(len(time)), 0.6),
        "bass": (0.2 * tone(root * 2 ** (step // 4 % 3 / 12), 2), 0.5),
        "other": (0.04 * chords, 0.3),
    }
    return {
        name: np.stack((2 * pan * audio, 2 * (1 - pan) * audio)).astype(np.float32)
        for name, (audio, pan) in parts.items()
    }


def recorded_sources() -> dict[str, Audio] | None:
    """The 6 s song inside PyPI's package stempeg, ``[2, N]`` each; None where that is not installed."""
    path = example_stem_file()
    if path is None:
        return None
    found = {}
    for name in NAMES:
        with open_audio(path, stream=STEM_FILE_STREAMS.index(name)) as audio:
            found[name] = np.concatenate(list(model_blocks(audio, RATE, 2)), axis=1)
    return found


def write_example(out: Path, *, force: bool = False) -> list[Path]:
    """Write the set as 32-bit float WAV, whole or not at all; the mixture is the sum of the sources.

    Args:
        out: folder to make.
        force: replace it.

    Returns:
        The songs' folders.

    Raises:
        OutputExists: ``out`` is there and ``force`` is False.
    """
    songs = {name: synthetic_sources(seed, SECONDS) for seed, name in enumerate(SYNTHETIC)}
    recorded = recorded_sources()
    if recorded is not None:
        songs["recorded"] = recorded
    if out.exists() and not force:
        raise OutputExists(f"{out} is there already: replace it with --force, or choose another name")
    with new_folder(out, force=force, named=True) as work:
        for song, sources in songs.items():
            (work / song).mkdir()
            mixture = np.sum(list(sources.values()), axis=0)
            gain = PEAK / np.abs(mixture).max()  # one for all, so that the mixture stays their sum
            for name, audio in {"mixture": mixture, **sources}.items():
                soundfile.write(work / song / f"{name}.wav", gain * audio.T, RATE, subtype="FLOAT")
    return [out / song for song in songs]
