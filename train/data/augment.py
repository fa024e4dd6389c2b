"""What is done to the sources of a training chunk: drawn here as numbers, done here to audio.

    in the song ──> speed ──> tempo, pitch ──> effects ──> channels, gain ──> frequency mask ──> time mask
                    └────── Motion ──────┘    effects.py   └────────────────── Change ──────────────────┘

Sources that belong together move together, as channels of one signal: what moves them keeps the phases
between channels, so their sum is still the song.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import BackendUnavailable
from tfswa.train.config import AugmentConfig

Audio = NDArray[np.float32]

# Context read at both ends of a chunk and dropped again: the first 30 ms out of the stretcher are up to
# 1.7 dB too quiet, and a resampler rings for some 30 samples where a signal begins.
_MARGIN = 2048

_SILENT = 1e-8  # mean square, -80 dBFS: neither is balanced against the other
_MOST_GAIN = 8.0  # 18 dB, either way

_EDGE_HZ = 40.0  # of a frequency mask, outside the band
_EDGE_SECONDS = 0.005  # of a time mask, outside the span


@dataclass(frozen=True)
class Motion:
    """How time runs; see ``AugmentConfig``.

    Attributes:
        speed: factor on pitch and tempo together.
        tempo: factor.
        semitones: of pitch.
    """

    speed: float = 1.0
    tempo: float = 1.0
    semitones: float = 0.0

    @property
    def moves(self) -> bool:
        """Whether it is anything at all."""
        return self != Motion()

    def span(self, samples: int) -> int:
        """Samples of a song that a chunk of ``samples`` takes up."""
        return math.ceil(samples * self.tempo * self.speed)


@dataclass(frozen=True)
class Change:
    """What is done to one source after it has moved.

    Attributes:
        gain: factor.
        frequency_mask: band removed, in Hz; None for none.
        time_mask: samples of the chunk silenced, first and first after; None for none.
        channel_swap: left and right change places.
        silence: left out.
    """

    gain: float = 1.0
    frequency_mask: tuple[float, float] | None = None
    time_mask: tuple[int, int] | None = None
    channel_swap: bool = False
    silence: bool = False


@dataclass(frozen=True)
class Mixing:
    """How the stems of a chunk come together.

    Attributes:
        by_source: where they are remixed, every source is drawn on its own.
        without: indices of the stems that are left out.
        balance_db: level of one stem against the others; None for no change.
    """

    by_source: bool
    without: frozenset[int]
    balance_db: float | None


def longest_span(augment: AugmentConfig, samples: int) -> int:
    """``Motion.span`` of the fastest motion that can be drawn."""
    speed = max(1.0, augment.speed_range[1]) if augment.speed else 1.0
    tempo = max(1.0, augment.tempo_range[1]) if augment.tempo else 1.0
    return Motion(speed, tempo).span(samples)


# Everything is drawn, used or not: one probability changed leaves the other draws as they were.


def draw_motion(random: np.random.Generator, augment: AugmentConfig) -> Motion:
    """Draw how time runs."""
    speed_on, tempo_on, pitch_on = random.random(3) < (augment.speed, augment.tempo, augment.pitch)
    low, high = augment.speed_range
    speed = math.exp(random.uniform(math.log(low), math.log(high)))
    tempo = random.uniform(*augment.tempo_range)
    semitones = augment.pitch_semitones * random.uniform(-1, 1)
    return Motion(speed if speed_on else 1.0, tempo if tempo_on else 1.0, semitones if pitch_on else 0.0)


def draw_change(
    random: np.random.Generator, augment: AugmentConfig, samples: int, sample_rate: int
) -> Change:
    """Draw what is done to one source of a chunk of ``samples``."""
    names = ("gain", "frequency_mask", "time_mask", "channel_swap", "silence")
    on = dict(zip(names, random.random(5) < [getattr(augment, name) for name in names], strict=True))
    gain = random.uniform(*augment.gain_range)
    width = min(random.uniform(0, augment.frequency_mask_hz), sample_rate / 2)
    low = random.uniform(0, sample_rate / 2 - width)
    length = min(int(random.uniform(0, augment.time_mask_seconds) * sample_rate), samples)
    start = int(random.integers(samples - length + 1))
    return Change(
        gain if on["gain"] else 1.0,
        (low, low + width) if on["frequency_mask"] else None,
        (start, start + length) if on["time_mask"] else None,
        bool(on["channel_swap"]),
        bool(on["silence"]),
    )


def draw_mixing(random: np.random.Generator, augment: AugmentConfig, stems: Sequence[str]) -> Mixing:
    """Draw how the stems of a chunk come together."""
    by_source, balanced = random.random(2) < (augment.remix_sources, augment.balance)
    level = random.uniform(*augment.balance_db)
    without = random.random(len(stems)) < [augment.without.get(stem, 0.0) for stem in stems]
    left_out = frozenset(int(index) for index in np.flatnonzero(without))
    return Mixing(bool(by_source), left_out, level if balanced else None)


def balance(stems: Audio, stem: int, level_db: float) -> None:
    """Set the level of one of the stems ``[S, C, N]`` against the sum of the others, in place."""
    power = float(np.mean(np.square(stems[stem], dtype=np.float64)))
    others = stems.sum(axis=0, dtype=np.float64) - stems[stem]
    wanted = float(np.mean(np.square(others))) * 10 ** (level_db / 10)
    if min(power, wanted) > _SILENT:
        stems[stem] *= np.float32(np.clip(math.sqrt(wanted / power), 1 / _MOST_GAIN, _MOST_GAIN))


def needed(motion: Motion, samples: int) -> tuple[int, int]:
    """What ``moved`` is to be given for a chunk: samples of the song before its start, and in all."""
    if not motion.moves:
        return 0, samples
    return motion.span(_MARGIN), motion.span(samples + 2 * _MARGIN)


def moved(audio: Audio, motion: Motion, samples: int, sample_rate: int) -> Audio:
    """Play audio ``[C, needed]`` as a motion says; returns ``[C, samples]``."""
    if not motion.moves:
        return audio
    if motion.speed != 1:
        import soxr

        frames = soxr.resample(np.ascontiguousarray(audio.T), motion.speed, 1.0, quality="HQ")  # [n, C]
        audio = np.asarray(frames, dtype=np.float32).T
    if motion.tempo != 1 or motion.semitones:
        audio = _stretched(audio, motion.tempo, motion.semitones, sample_rate)
    out = audio[:, _MARGIN : _MARGIN + samples]
    assert out.shape[1] == samples
    return out


def changed(audio: Audio, change: Change, sample_rate: int) -> Audio:
    """Do a change to a source ``[C, N]``, which stays as it is; returns another."""
    if change.silence:
        return np.zeros_like(audio)
    audio = (audio[::-1] if change.channel_swap else audio) * np.float32(change.gain)
    if change.frequency_mask is not None:
        audio = _without_band(audio, *change.frequency_mask, sample_rate)
    if change.time_mask is not None:
        audio *= _time_window(audio.shape[1], *change.time_mask, sample_rate)
    return audio


def stretcher() -> Any:
    """The library that changes tempo and pitch.

    Raises:
        BackendUnavailable: it is missing.
    """
    try:
        from python_stretch import Signalsmith
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            "augment.tempo and augment.pitch need python_stretch: pip install 'tfswa[train]'"
        ) from error
    return Signalsmith


def _stretched(audio: Audio, tempo: float, semitones: float, sample_rate: int) -> Audio:
    """Signalsmith Stretch, which compensates its latency: onsets come within 1.4 ms of where they belong."""
    stretch = stretcher().Stretch(0)  # its seed: the same in, the same out
    stretch.preset(audio.shape[0], sample_rate)
    stretch.setTimeFactor(tempo)
    stretch.setTransposeSemitones(semitones)
    out: Audio = stretch.process(np.ascontiguousarray(audio))
    return out


def _without_band(audio: Audio, low: float, high: float, sample_rate: int) -> Audio:
    """Remove a band in the frequency domain, its edges cosines of ``_EDGE_HZ`` outside of it.

    1 ──╮        ╭──
        ╰────────╯
       low     high
    """
    from scipy import fft

    samples = audio.shape[1]
    # The filter rings for about 1 / _EDGE_HZ: mirrored ends keep it from going around.
    pad = min(samples - 1, round(2 / _EDGE_HZ * sample_rate))
    padded = np.pad(audio, ((0, 0), (pad, pad)), mode="reflect")
    size = fft.next_fast_len(padded.shape[1], real=True)
    hertz = np.arange(size // 2 + 1, dtype=np.float32) * np.float32(sample_rate / size)
    outside = np.maximum(low - hertz, hertz - high) / _EDGE_HZ
    keep = np.float32(0.5) - np.float32(0.5) * np.cos(np.pi * np.clip(outside, 0, 1))
    out: Audio = fft.irfft(fft.rfft(padded, size) * keep, size)[:, pad : pad + samples]
    return out


def _time_window(samples: int, first: int, after: int, sample_rate: int) -> NDArray[np.float32]:
    """Factors ``[N]``: 0 from ``first`` to ``after``, cosines of ``_EDGE_SECONDS`` outside of that."""
    place = np.arange(samples, dtype=np.float32)
    outside = np.maximum(first - place, place - (after - 1)) / np.float32(_EDGE_SECONDS * sample_rate)
    return np.float32(0.5) - np.float32(0.5) * np.cos(np.float32(np.pi) * np.clip(outside, 0, 1))
