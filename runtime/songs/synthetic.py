"""Generated signals: a song, and what is difficult; the same bits for the same seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.songs.finding import REST
from tfswa.runtime.songs.loading import Song

Audio = NDArray[np.float32]

SYNTHETIC_SECONDS = 12.0
_QUIET_DB = -80.0
_CLIPPED_DB = 20.0  # how far music is driven into clipping
_BIN = 100


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


def difficult_signals(spec: ModelSpec, kept: int, step: int, seed: int) -> Iterator[tuple[str, Audio]]:
    """Signals on which hosts and low precision break, by name, each ``[C, N]``; the same bits for a seed.

    Args:
        spec: the model's contract.
        kept: samples that one chunk keeps.
        step: how far the next one is: signals fall on its seams.
        seed: of the random ones.
    """
    random = np.random.default_rng(seed)
    rate, n_fft = spec.stft.sample_rate, spec.stft.n_fft
    time = np.arange(kept)
    music = synthetic_song(spec, (kept + 1) / rate, seed).mixture[:, :kept]
    bins = 2 * np.pi * time / n_fft

    def both(signal: NDArray[np.floating]) -> Audio:
        return np.tile(signal.astype(np.float32), (spec.channels, 1))

    yield "silence", both(np.zeros(kept))
    yield "square wave of full scale", both(np.where(np.sin(2 * np.pi * 110 / rate * time) >= 0, 1.0, -1.0))
    yield f"sine at the center of bin {_BIN}", both(np.sin(_BIN * bins))
    yield f"sine at the edge of bin {_BIN}", both(np.sin((_BIN + 0.5) * bins))
    yield "direct current", both(np.ones(kept))
    yield "white noise", random.uniform(-1.0, 1.0, (spec.channels, kept)).astype(np.float32)
    yield (
        f"music at {_QUIET_DB:g} dBFS",
        (music * 10 ** (_QUIET_DB / 20) / np.abs(music).max()).astype(np.float32),
    )
    yield "clipped music", np.clip(music * np.float32(10 ** (_CLIPPED_DB / 20)), -1.0, 1.0)
    if spec.channels == 2:
        yield "left only", music * np.array([[1.0], [0.0]], np.float32)
        yield "left and right in opposition", music[:1] * np.array([[1.0], [-1.0]], np.float32)
    for place, at in (("where a seam begins", step), ("in a seam", step + spec.fade_samples // 2)):
        click = np.zeros((spec.channels, kept + step), np.float32)
        click[:, at] = 1.0
        yield f"click {place}", click
    noise = random.uniform(-0.5, 0.5, (spec.channels, kept + step + 1)).astype(np.float32)
    for samples in (1, 2, 3, 4, 5):
        yield f"{samples} samples" if samples > 1 else "1 sample", noise[:, :samples]
    for chunks in (1, 2):
        end = kept + (chunks - 1) * step  # the longest signal of so many chunks
        for samples in (end - 1, end, end + 1):
            yield f"{samples} samples", noise[:, :samples]
