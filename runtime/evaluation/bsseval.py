"""SDR, ISR, SIR and SAR (BSSEval v4, image version) for several estimates of one song.

An estimate's error falls into three parts that are orthogonal over the whole song:

    estimate - stem  =  spatial distortion   what filters of the stem itself explain           -> ISR
                     +  interference         what filters of the other stems explain as well   -> SIR
                     +  artifacts            the rest                                          -> SAR

The filters are found once for the whole song. Figures are of windows. The methods differ in what a window is:

- ``v4``         the stems are cut, then filtered, as in museval: its figures to the last digit.
- ``continuous`` the stems are filtered, then cut; filters amplify nothing below -100 dB (``LOADING``).
- ``museval``    the library itself, whatever it says.

Where stems have hardly any energy in a band (AAC: nothing above 16 kHz), a filter may have a gain of 100 dB
there. A cut makes a click, a click has energy in every band, and ``v4`` measures amplified clicks: the parts
of a real song add up to 9 times the error that they are parts of. So each part's energy, summed over the
windows, is compared with that of the same windows without a cut. Where the two differ by more than
``CUT_DB``, the part's ratio is not defined. None is where the correlations are so ill-conditioned that
rounding decides (``CONDITION``). SDR needs no filters and is always defined.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from tfswa.runtime.evaluation.by_museval import museval_figures
from tfswa.runtime.evaluation.projection import FILTER_SAMPLES, Filters, Projection
from tfswa.runtime.evaluation.signals import BLOCK, Signal, excerpt, starts

MEASURES = ("sdr", "isr", "sir", "sar")
METHODS = ("v4", "continuous", "museval")

Method = Literal["v4", "continuous", "museval"]

RING = FILTER_SAMPLES - 1  # samples for which a filter rings on
CUT_DB = 3.0  # half of what is measured is clicks; measured: below 0.3 for full-band stems, 8 to 10 for AAC

# Rounding changes a part's energy by at most about (condition x 1.1e-16)^2 of the estimate's: here -59 dB.
CONDITION = 1e13

EXACT = 1e-20  # a part below -200 dB is rounding

LOADING = 1e-10  # of ``continuous``

PARTS = {"isr": "spatial distortion", "sir": "interference", "sar": "artifacts"}

_Samples = NDArray[np.float64]  # [C, N]


@dataclass(frozen=True)
class Figures:
    """What windows of one length say.

    Attributes:
        values: dB, ``[4, S, windows]``: SDR, ISR, SIR, SAR. NaN where undefined, inf where nothing is wrong.
        undefined: for each stem, why a measure is NaN in all windows, by its name; empty where none is.
    """

    values: NDArray[np.float64]
    undefined: Sequence[Mapping[str, str]]


class BssEval:
    """BSSEval v4 against one song's true stems.

    A stem that is silent throughout is left out: it is no interference, and its figures are NaN. So are those
    of an estimate that is silent throughout. A window in which any other stem or estimate is silent is NaN
    for all of them, and a signal shorter than a window is one window; both as in museval. Silent means, as
    there, that the channels sum to zero.

    Memory is that of the matrix, ``8 * (S * C * 512)**2`` bytes, and of a window, however long the song; the
    library museval takes copies of all of it.

    Args:
        references: true stems, each ``[C, N]``, N above 0; kept, not copied.
        window_samples: lengths of windows; they follow one another without overlap.
        method: see the module.

    Raises:
        BackendUnavailable: museval is asked for and cannot be imported.
    """

    def __init__(
        self, references: Sequence[Signal], window_samples: Sequence[int], method: Method = "v4"
    ) -> None:
        self._count, self._method, self._windows = len(references), method, tuple(window_samples)
        self._heard = [index for index in range(self._count) if _sounds(references[index])]
        self._references = [references[index] for index in self._heard]
        self._projection: Projection | None = None
        if self._heard and method != "museval":
            self._projection = Projection(self._references, LOADING if method == "continuous" else 0.0)

    def evaluate(self, estimates: Sequence[Signal]) -> list[Figures]:
        """Measure estimates of all stems.

        Args:
            estimates: each ``[C, N]``, finite.

        Returns:
            Figures for each length of windows.
        """
        silent = [index for index in self._heard if not _sounds(estimates[index])]
        if len(silent) == len(self._heard):
            samples = estimates[0].shape[1]
            counts = [len(_frames(samples, window)) for window in self._windows]
            return [Figures(np.full((4, self._count, n), np.nan), [{}] * self._count) for n in counts]
        signals = [  # where one is silent the stem stands in, so that the others' windows count
            self._references[place] if index in silent else estimates[index]
            for place, index in enumerate(self._heard)
        ]
        return [self._placed(found, silent) for found in self._measure(signals)]

    def _measure(self, signals: Sequence[Signal]) -> Iterator[Figures]:
        """Figures of the stems that are heard."""
        if self._projection is None:
            for window in self._windows:
                yield Figures(museval_figures(self._references, signals, window), [{}] * len(signals))
            return
        condition = self._projection.condition
        filters = self._projection.filters(signals) if condition <= CONDITION else None
        for window in self._windows:
            values, energies = self._window(signals, filters, window)
            if filters is None:
                why = f"the true stems' correlations are singular: condition {condition:.0e}"
                reasons = [dict.fromkeys(PARTS, why)] * len(signals)
            elif self._method == "continuous":
                reasons = [{} for _ in signals]
            else:
                reasons = [_cut_reasons(*sums) for sums in energies]
            for place, reason in enumerate(reasons):
                values[[MEASURES.index(measure) for measure in reason], place] = np.nan
            yield Figures(values, reasons)

    def _window(
        self, signals: Sequence[Signal], filters: Sequence[Filters] | None, window: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Values ``[4, H, windows]``, and energies over all windows ``[H, 2, 4]``.

        The energies are of stems that are cut, and of whole ones: the stem's, and those of the error's parts.
        """
        frames = _frames(signals[0].shape[1], window)
        values = np.full((4, len(signals), len(frames)), np.nan)
        energies = np.zeros((len(signals), 2, 4))
        for number, (start, stop) in enumerate(frames):
            stems = [excerpt(reference, start, stop) for reference in self._references]
            found = [excerpt(signal, start, stop) for signal in signals]
            if not all(signal.sum(axis=0).any() for signal in (*stems, *found)):
                continue
            stretch = None if filters is None else _Stretch(self._projection, start, stop)
            for place, (stem, estimate) in enumerate(zip(stems, found, strict=True)):
                values[0, place, number] = _db(_energy(stem), _energy(estimate - stem))
                if stretch is not None and filters is not None:
                    pairs = stretch.explained(place, filters[place])  # when cut, when whole
                    parts = [_decompose(stem, estimate, *pair) for pair in pairs]
                    energies[place] += [[_energy(stem), *map(_energy, three)] for three in parts]
                    values[1:, place, number] = _ratios(stem, *parts[self._method == "continuous"])
        return values, energies

    def _placed(self, found: Figures, silent: Sequence[int]) -> Figures:
        """Figures of all stems, from those of the stems that are heard."""
        values = np.full((4, self._count, found.values.shape[-1]), np.nan)
        values[:, self._heard] = found.values
        values[:, silent] = np.nan
        if len(self._heard) == 1:
            values[2] = np.nan  # no source that could interfere
        by_stem = dict(zip(self._heard, found.undefined, strict=True))
        reasons = [{} if index in silent else by_stem.get(index, {}) for index in range(self._count)]
        return Figures(values, reasons)


class _Stretch:
    """One window of all stems, and what filters make of it."""

    def __init__(self, projection: Projection | None, start: int, stop: int) -> None:
        assert projection is not None
        self._rows, self._samples = projection.rows, stop - start
        self._length = scipy.fft.next_fast_len(self._samples + RING, real=True)
        self._spectra = scipy.fft.rfft(projection.piece(start, stop), self._length)  # [D, F]
        self._before = scipy.fft.rfft(projection.piece(start - RING, start), 2 * FILTER_SAMPLES)

    def explained(self, place: int, filters: Filters) -> list[tuple[_Samples, _Samples]]:
        """What a stem explains of its estimate, and what all stems do: when cut, and when whole.

        Stems that are cut are silent before the window and ring on after it; ``[C, samples + RING]``.
        Whole ones ring into the window from before; ``[C, samples]``.
        """
        own = self._filtered(filters.onto_own, self._rows[place])
        every = self._filtered(filters.onto_all, slice(None))
        return list(zip(own, every, strict=True))

    def _filtered(self, filters: NDArray[np.float64], rows: slice) -> tuple[_Samples, _Samples]:
        alone = _filter(filters, self._spectra[rows], self._length)[:, : self._samples + RING]
        whole = alone[:, : self._samples].copy()
        rung = _filter(filters, self._before[rows], 2 * FILTER_SAMPLES)[:, RING : 2 * RING]
        whole[:, :RING] += rung[:, : self._samples]
        return alone, whole


def _filter(filters: NDArray[np.float64], spectra: NDArray[np.complex128], length: int) -> _Samples:
    """Filter directions ``[D, F]`` by ``[D, T, C]`` and sum them, ``[C, length]``."""
    responses = scipy.fft.rfft(filters, length, axis=1)  # [D, F, C]
    found: _Samples = scipy.fft.irfft(np.einsum("dfc,df->cf", responses, spectra), length)
    return found


def _decompose(
    stem: _Samples, estimate: _Samples, by_own: _Samples, by_all: _Samples
) -> tuple[_Samples, _Samples, _Samples]:
    """Spatial distortion, interference, artifacts; what rings on is longer than its stem."""
    beyond = ((0, 0), (0, by_all.shape[1] - stem.shape[1]))
    return by_own - np.pad(stem, beyond), by_all - by_own, np.pad(estimate, beyond) - by_all


def _ratios(
    stem: _Samples, spatial: _Samples, interference: _Samples, artifacts: _Samples
) -> tuple[float, float, float]:
    """ISR, SIR, SAR in dB."""
    own = spatial.copy()
    own[:, : stem.shape[1]] += stem
    return (
        _db(_energy(stem), _energy(spatial)),
        _db(_energy(own), _energy(interference)),
        _db(_energy(own + interference), _energy(artifacts)),
    )


def _cut_reasons(when_cut: NDArray[np.float64], when_whole: NDArray[np.float64]) -> dict[str, str]:
    """Measures whose part is another one when stems are cut, and why; see ``_window``."""
    reasons = {}
    for (measure, part), alone, whole in zip(PARTS.items(), when_cut[1:], when_whole[1:], strict=True):
        if max(alone, whole) > EXACT * when_whole[0]:
            change = _db(alone, whole)
            if abs(change) > CUT_DB:
                reasons[measure] = f"cutting stems into windows changes its {part} by {change:+.1f} dB"
    return reasons


def _frames(samples: int, window: int) -> list[tuple[int, int]]:
    """Whole windows alone, or one that is the whole song."""
    return [frame for frame in starts(samples, window) if frame[1] - frame[0] == min(window, samples)]


def _sounds(signal: Signal) -> bool:
    return any(excerpt(signal, *block).sum(axis=0).any() for block in starts(signal.shape[1], BLOCK))


def _energy(signal: NDArray[np.float64]) -> float:
    return float(np.vdot(signal, signal))


def _db(right: float, wrong: float) -> float:
    with np.errstate(divide="ignore"):  # nothing of the stem is -inf dB
        return float(10 * np.log10(np.float64(right) / wrong)) if wrong else np.inf
