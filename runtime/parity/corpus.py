"""What artifacts are compared on: real songs, and signals that are made to be difficult.

The difficult ones come from a seed, in the model's own chunk lengths, so that they fall on its seams. They
are one chunk or two each: all of them together cost a few dozen chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.songs.finding import find_songs
from tfswa.runtime.songs.loading import Song, load, synthetic_song
from tfswa.runtime.stream.overlap import ChunkPlan

Kind = Literal["real", "adversarial", "tiny"]
SEED = 20_261

_TINY = 1e-3  # peak: -60 dBFS
_QUIET_DB = -80.0
_CLIPPED_DB = 20.0  # how far music is driven into clipping
_BIN = 100


@dataclass(frozen=True)
class Item:
    """A part of a corpus.

    Attributes:
        name: for tables.
        kind: ``real``, or ``adversarial``: made to be difficult.
        load: makes the song; called when its turn comes, so that a corpus of any size fits.
        samples: N where it is known before that.
    """

    name: str
    kind: Kind
    load: Callable[[], Song]
    samples: int | None = None

    @classmethod
    def of(cls, song: Song, kind: Kind = "real") -> Self:
        """A song that is loaded already."""
        return cls(song.name, kind, lambda: song, song.mixture.shape[-1])


def kind_of(item: Item, song: Song, spec: ModelSpec) -> Kind:
    """How an item is judged: a real one by SNR and drift, any other by its error and by being finite.

    ``tiny`` is what no SNR means anything for: below -60 dBFS throughout, or shorter than a hop.
    """
    if song.mixture.shape[-1] < spec.stft.hop or float(np.abs(song.mixture).max()) < _TINY:
        return "tiny"
    return item.kind


def songs(path: Path | None, spec: ModelSpec) -> list[Item]:
    """The songs that a user points at, or one that is generated.

    Raises:
        AudioError: nothing there that can be decoded.
    """
    if path is None:
        return [Item.of(synthetic_song(spec))]
    found = find_songs(path, names=spec.stems)
    return [Item(song.name, "real", lambda song=song: load(song, spec)) for song in found]  # type: ignore[misc]


def adversaries(spec: ModelSpec, seed: int = SEED) -> list[Item]:
    """Signals on which hosts and low precision break; the same bits for the same spec and seed."""
    return [Item.of(Song(name, signal, {}), "adversarial") for name, signal in _signals(spec, seed)]


def seam_samples(spec: ModelSpec) -> tuple[int, int]:
    """Samples that one chunk keeps, and how far the next one is: signals grow by a chunk there.

    ::

        chunk 0  |<------ kept ------>|
        chunk 1            |<------ kept ------>|
                 |<-step-->|
    """
    plan = ChunkPlan(spec.chunk_samples, spec.context_samples, spec.fade_samples)
    return plan.kept, plan.step


def _signals(spec: ModelSpec, seed: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    random = np.random.default_rng(seed)
    rate, n_fft = spec.stft.sample_rate, spec.stft.n_fft
    kept, step = seam_samples(spec)
    time = np.arange(kept)
    music = synthetic_song(spec, (kept + 1) / rate, seed).mixture[:, :kept]
    bins = 2 * np.pi * time / n_fft

    def both(signal: NDArray[np.floating]) -> NDArray[np.float32]:
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
