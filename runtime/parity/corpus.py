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

from tfswa.runtime.model.spec import INPUT, SAMPLES, ModelSpec
from tfswa.runtime.songs.finding import find_songs
from tfswa.runtime.songs.loading import Song, load, loudest_chunk
from tfswa.runtime.songs.synthetic import difficult_signals, synthetic_song
from tfswa.runtime.stream.codec import first_tensors
from tfswa.runtime.stream.plan import ChunkPlan
from tfswa.runtime.stream.transform import Stft

Kind = Literal["real", "adversarial", "tiny"]
SEED = 20_261

_TINY = 1e-3  # peak: -60 dBFS


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


def loudest_planes(mixture: NDArray[np.float32], spec: ModelSpec) -> tuple[int, NDArray[np.float32]]:
    """Where a song's loudest chunk begins, in samples, and the network's planes of it, ``[1, 2*C, T, F]``.

    Raises:
        AudioError: the song is silent.
    """
    start, given = loudest_tensors(mixture, spec)
    return start, given[INPUT]


def loudest_tensors(
    mixture: NDArray[np.float32], spec: ModelSpec
) -> tuple[int, dict[str, NDArray[np.float32]]]:
    """The same, and all that the network takes, as of a signal's first chunk.

    Raises:
        AudioError: the song is silent.
    """
    start, chunk = loudest_chunk(mixture, spec)
    chunks = chunk[np.newaxis]
    return start, first_tensors(spec, {INPUT: Stft(spec.stft).planes(chunks), SAMPLES: chunks})


def adversaries(spec: ModelSpec, seed: int = SEED) -> list[Item]:
    """Signals on which hosts and low precision break; the same bits for the same spec and seed."""
    signals = difficult_signals(spec, *seam_samples(spec), seed)
    return [Item.of(Song(name, signal, {}), "adversarial") for name, signal in signals]


def adversarial_chunks(
    spec: ModelSpec, count: int | None = None, seed: int = SEED
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The first ``count`` adversaries, by name, as the first chunk of a song holds them.

    Yields:
        Name and chunk ``[C, chunk_samples]``: zeros where its context is, then the signal, cut or padded.
    """
    for item in adversaries(spec, seed)[:count]:
        chunk = np.zeros((spec.channels, spec.chunk_samples), np.float32)
        room = chunk[:, spec.context_samples :]
        signal = item.load().mixture[:, : room.shape[1]]
        room[:, : signal.shape[1]] = signal
        yield item.name, chunk


def seam_samples(spec: ModelSpec) -> tuple[int, int]:
    """Samples that one chunk keeps, and how far the next one is: signals grow by a chunk there.

    ::

        chunk 0  |<------ kept ------>|
        chunk 1            |<------ kept ------>|
                 |<-step-->|
    """
    plan = ChunkPlan.of(spec)
    return plan.kept, plan.step
