"""Seams: how much a network loses near a chunk's edge, and how much context makes up for it.

The same network takes a long stretch of a song in one pass, and chunks of its usual length that are cut
out of the inside of that stretch, with no context. Where a chunk is far from its edges both say the same;
near them the chunk lacks what lies beyond::

    long pass  |-----------------------------------------------|
    chunk                |----------------|
    distance             0 1 2 ...... 2 1 0      in hops from the nearer edge

Distance d is the hop of samples from d to d + 1 hops from the edge, so that a context of c frames discards
the distances 0 ... c - 1. Chunks start at multiples of ``chunk.multiple``: windows and strides of the
network then fall on the same frames in both, and nothing but the edge differs.

What is lost at a distance is SDR, summed over all chunks and both edges, where the true stems are known::

    loss(d) = SDR of the long pass - SDR of the chunk                   both against the truth, at distance d
    loss(d) = 10 log10(1 + 10^((ASSUMED_DB - SNR(d)) / 10))             where the truth is unknown

The second is what a difference from the long pass costs a network of ``ASSUMED_DB`` SDR whose own errors it
has nothing to do with. The context asked for is the smallest c with ``loss(d) - loss(middle) <= limit`` for
every stem and every d >= c; the middle is the quarter of the chunk that is farthest from its edges. What the
middle itself loses no context can mend: a network whose attention spans the chunk sees another chunk there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import AudioError, BundleError, NonFiniteError, UsageError
from tfswa.runtime.metrics import finite_db
from tfswa.runtime.model.opening import Model
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec
from tfswa.runtime.parity.corpus import Item
from tfswa.runtime.parity.reference import Reference, eager_network
from tfswa.runtime.songs.loading import Song

Audio = NDArray[np.float32]
Energies = NDArray[np.float64]  # [5, S, distances]: long, long - chunk, truth, truth - long, truth - chunk

LIMIT_DB = 0.1
ASSUMED_DB = 10.0  # what good networks reach on vocals
EQUAL_DB = 80.0  # from here on a chunk and the long pass are one: rounding of float32 lies above
CHUNKS = 4  # of the usual length make one long pass
PASSES = 2  # of a song at most, spread over it
LONGEST = 64  # chunks' lengths; more do not fit into memory


@dataclass(frozen=True)
class Curve:
    """One stem by distance from the edge, in dB; ``math.inf`` where equal, NaN where silent.

    Attributes:
        stem: its name.
        snr_db: the long pass against its difference from the chunk.
        sdr_db: of the chunk against the truth; empty where that is unknown.
        loss_db: SDR lost against the long pass, see above.
        middle_snr_db: SNR of the middle.
        middle_loss_db: its loss.
    """

    stem: str
    snr_db: Sequence[float]
    sdr_db: Sequence[float]
    loss_db: Sequence[float]
    middle_snr_db: float
    middle_loss_db: float

    def seam_db(self, context: int) -> float:
        """The largest loss beyond a context, less that of the middle."""
        return max(
            (loss - self.middle_loss_db for loss in self.loss_db[context:] if loss == loss), default=0.0
        )

    def worst_snr_db(self, context: int) -> float:
        """The lowest SNR beyond a context."""
        return min((value for value in self.snr_db[context:] if value == value), default=math.inf)


@dataclass(frozen=True)
class Choice:
    """A context that a model may have, and what it gives.

    Attributes:
        context: frames at either side.
        seam_db: the largest loss that is left, less that of the middle.
        snr_db: the lowest that is left; ``math.inf`` where equal.
        kept_share: of a chunk, what is not computed twice.
        speed: beside the present context.
    """

    context: int
    seam_db: float
    snr_db: float
    kept_share: float
    speed: float


@dataclass(frozen=True)
class Seams:
    """What was found.

    Attributes:
        spec: of the model.
        songs: their names.
        long_frames: T of the long pass.
        chunks: how many were compared with it.
        truth: whether the loss is measured, or follows from ``ASSUMED_DB``.
        limit_db: what may be lost.
        curves: one for each stem.
        context: the smallest that loses no more; None where none does that leaves anything of a chunk.
        exact: the smallest beyond which chunk and long pass are equal (80 dB); None where they never are.
    """

    spec: ModelSpec
    songs: Sequence[str]
    long_frames: int
    chunks: int
    truth: bool
    limit_db: float
    curves: Sequence[Curve]
    context: int | None
    exact: int | None

    def speed(self, context: int) -> tuple[float, float]:
        """Of a context: the share of a chunk that is not computed twice, and the speed beside the present."""
        chunk = self.spec.chunk
        step = replace(chunk, context=context).step
        return step / (chunk.frames - 1), step / chunk.step

    def choices(self) -> list[Choice]:
        """The present context, what was found, and a few others that leave something of a chunk."""
        wanted = {0, 2, 4, 8, 16, 32, 64, self.spec.chunk.context, self.context, self.exact}
        contexts = sorted(c for c in wanted if c is not None and _leaves(self.spec.chunk, c))
        return [
            Choice(
                context,
                max(curve.seam_db(context) for curve in self.curves),
                min(curve.worst_snr_db(context) for curve in self.curves),
                *self.speed(context),
            )
            for context in contexts
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; None for what is not finite."""
        measured = ("long_frames", "chunks", "truth", "limit_db")
        return {
            "songs": list(self.songs),
            "frames": self.spec.chunk.frames,
            **{name: getattr(self, name) for name in measured},
            "present": self.spec.chunk.context,
            "context": self.context,
            "exact": self.exact,
            "contexts": [_finite_figures(choice) for choice in self.choices()],
            "stems": [_finite_figures(curve) for curve in self.curves],
        }


def measure_seams(
    model: Model,
    corpus: Sequence[Item],
    *,
    long_frames: int | None = None,
    limit_db: float = LIMIT_DB,
    report: Callable[[str], None] = lambda line: None,
) -> Seams:
    """Compare chunks with a long pass, by distance from the chunk's edge.

    Args:
        model: a bundle's model.
        corpus: songs; one that is shorter than the long pass is repeated until it is not.
        long_frames: T of the long pass, a multiple of ``chunk.multiple``, at least twice the chunk's;
            default: four times.
        limit_db: loss of SDR that is let through.
        report: told in a line what is under way.

    Raises:
        UsageError: an exported file, or a long pass that does not suit the network.
        AudioError: nothing in the songs can be heard.
        NonFiniteError: the network gives NaN or Inf.
    """
    if model.bundle is None:
        raise UsageError(f"{model.name} is an exported file of fixed length: name the bundle it came from")
    spec = model.spec
    long_frames = CHUNKS * spec.chunk.frames if long_frames is None else long_frames
    multiple, frames = spec.chunk.multiple, spec.chunk.frames
    if long_frames % multiple or not 2 * frames <= long_frames <= LONGEST * frames:
        raise UsageError(
            f"a long pass of {long_frames} frames does not suit chunks of {frames}: give a multiple of "
            f"{multiple}, from {2 * frames} to {LONGEST * frames}"
        )
    reference = eager_network(model)
    total: Energies = np.zeros((5, len(spec.stems), _distances(spec)))
    chunks, truth, names = 0, True, []
    for item in corpus:
        song = item.load()
        if not song.mixture.any():
            continue
        names.append(song.name)
        truth = truth and all(stem in song.stems for stem in spec.stems)
        for energies in _song_energies(reference, spec, song, long_frames):
            chunks += 1
            total += energies
            report(f"{song.name}: {chunks} chunks")
    if not total[0].any():
        raise AudioError("the songs hold no sound, for which seams mean nothing: name others with --audio")
    curves = [_curve(stem, total[:, index], truth) for index, stem in enumerate(spec.stems)]
    context = _smallest(spec.chunk, lambda c: all(curve.seam_db(c) <= limit_db for curve in curves))
    exact = _smallest(spec.chunk, lambda c: all(curve.worst_snr_db(c) >= EQUAL_DB for curve in curves))
    return Seams(spec, names, long_frames, chunks, truth, limit_db, curves, context, exact)


def distances_to_show(count: int) -> list[int]:
    """Every distance near the edge, fewer and fewer toward the middle."""
    steps = [*range(8), *(m << e for e in range(2, count.bit_length()) for m in (2, 3))]
    return sorted({d for d in steps if d < count} | {count - 1})


def _song_energies(reference: Reference, spec: ModelSpec, song: Song, long_frames: int) -> Iterator[Energies]:
    """``[5, S, distances]`` of each chunk, both edges as one; without truth three mean nothing."""
    hop, frames, multiple = spec.stft.hop, spec.chunk.frames, spec.chunk.multiple
    length, count = spec.samples_of(long_frames), _distances(spec)
    silence = np.zeros_like(song.mixture)
    stems = np.stack([song.stems.get(stem, silence) for stem in spec.stems])
    margin = (
        min(frames // 2, (long_frames - frames) // 2) // multiple * multiple
    )  # the long pass has edges too
    apart = max(1, frames // 4 // multiple) * multiple
    for start in _starts(song.mixture.shape[-1], length):
        mixture, truth = _stretch(song.mixture, start, length), _stretch(stems, start, length)
        whole = _finite(reference.separate_once(mixture))
        for first in range(margin, long_frames - frames - margin + 1, apart):
            place = slice(first * hop, first * hop + spec.chunk_samples)
            chunk, right = _finite(reference.separate_once(mixture[:, place])), whole[..., place]
            true = truth[..., place].astype(np.float64)
            parts = np.stack([right, right - chunk, true, true - right, true - chunk])  # [5, S, C, N]
            edges = parts[..., : count * hop], parts[..., ::-1][..., : count * hop]
            yield sum(np.square(e).reshape(*e.shape[:3], count, hop).sum(axis=(2, 4)) for e in edges)


def _distances(spec: ModelSpec) -> int:
    """Hops from an edge to the middle of a chunk; one that is in the middle belongs to both edges."""
    return (spec.chunk_samples // spec.stft.hop + 1) // 2


def _starts(samples: int, length: int) -> list[int]:
    """Where long passes begin, spread evenly over a song."""
    count = max(1, min(PASSES, samples // length))
    return [int(start) for start in np.linspace(0, max(0, samples - length), count)]


def _stretch(signal: Audio, start: int, length: int) -> Audio:
    """A part of a signal ``[..., N]``, which is repeated where it is shorter."""
    return np.take(signal, range(start, start + length), axis=-1, mode="wrap")


def _finite(stems: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(stems).all():
        raise NonFiniteError("the eager network gives NaN or Inf: train it again")
    return stems


def _curve(stem: str, energies: NDArray[np.float64], truth: bool) -> Curve:
    """From energies ``[5, distances]``."""
    count = energies.shape[1]
    middle = energies[:, count - max(1, count // 4) :].sum(axis=1, keepdims=True)
    snr, sdr, loss = _figures(energies, truth)
    middle_snr, _, middle_loss = _figures(middle, truth)
    shown = list(map(float, sdr)) if truth else []
    return Curve(
        stem,
        list(map(float, snr)),
        shown,
        list(map(float, loss)),
        float(middle_snr[0]),
        float(middle_loss[0]),
    )


def _figures(e: NDArray[np.float64], truth: bool) -> tuple[NDArray[np.float64], ...]:
    """SNR, SDR and loss of each column, in dB; NaN where a stem is silent."""
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = np.where(e[0] > 0, 10 * np.log10(e[0] / e[1]), np.nan)
        sdr = np.where(e[2] > 0, 10 * np.log10(e[2] / e[4]), np.nan)
        if truth:
            # A stem that is equal in both loses nothing, be it silent or perfect.
            loss = np.where(e[1] > 0, 10 * np.log10(e[4] / e[3]), 0.0)
        else:
            loss = 10 * np.log10(1 + 10 ** ((ASSUMED_DB - snr) / 10))
    return snr, sdr, loss


def _smallest(chunk: ChunkSpec, enough: Callable[[int], bool]) -> int | None:
    """The smallest context that is enough and leaves something of a chunk."""
    found = next((c for c in range((chunk.frames - 1) // 2) if enough(c)), None)
    return found if found is not None and _leaves(chunk, found) else None


def _finite_figures(figures: Curve | Choice) -> dict[str, Any]:
    """Fields by name; None for numbers that are not finite."""

    def known(value: Any) -> Any:
        if isinstance(value, list):
            return list(map(finite_db, value))
        return finite_db(value) if isinstance(value, float) else value

    return {name: known(value) for name, value in vars(figures).items()}


def _leaves(chunk: ChunkSpec, context: int) -> bool:
    try:
        replace(chunk, context=context)
    except BundleError:
        return False
    return True
