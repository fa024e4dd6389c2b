"""SDR, ISR, SIR and SAR as museval defines them (BSSEval v4), for several estimates of one song.

The arithmetic is museval's own, function by function. What it would compute again for each estimate and each
length of windows, correlations and filters of the whole song, is computed once: less than half the time.
"""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import BackendUnavailable

MEASURES = ("sdr", "isr", "sir", "sar")
FILTER_SAMPLES = 512  # museval's default, which all published figures use


def require_museval() -> None:
    """See that museval can be imported.

    Raises:
        BackendUnavailable: it is not installed, or ffmpeg or ffprobe, which it asks for, are not on PATH.
    """
    if importlib.util.find_spec("museval") is None:
        raise BackendUnavailable("evaluation needs museval: pip install 'tfswa[eval]'")
    missing = [name for name in ("ffmpeg", "ffprobe") if shutil.which(name) is None]
    if missing:
        raise BackendUnavailable(
            f"museval needs {' and '.join(missing)} on PATH: install ffmpeg (apt-get install ffmpeg)"
        )


class BssEval:
    """museval's BSSEval v4, image version, against one song's true stems.

    A stem that is silent throughout, where museval refuses the whole song, is left out: it is no
    interference, and its figures are NaN. So are those of an estimate that is silent throughout. As in
    museval, a window in which any other stem or estimate is silent is NaN for all of them, and a signal
    shorter than a window is one window.

    Args:
        references: true stems, ``[S, C, N]``, N above 0.
        window_samples: lengths of windows; they follow one another without overlap.
    """

    def __init__(self, references: NDArray[Any], window_samples: Sequence[int]) -> None:
        self._museval = _metrics()
        self._count = len(references)
        self._heard = [index for index in range(self._count) if not self._is_silent(references[index])]
        self._windows = tuple(window_samples)
        self._references = _as_museval(references[self._heard])  # [H, N, C]
        if self._heard:
            self._whole, self._spectra = self._museval._compute_reference_correlations(
                self._references, FILTER_SAMPLES
            )

    def evaluate(self, estimates: NDArray[Any]) -> list[NDArray[np.float64]]:
        """Measure estimates of all stems.

        Args:
            estimates: ``[S, C, N]``, finite.

        Returns:
            For each length of windows float64 ``[4, S, windows]`` in dB: SDR, ISR, SIR, SAR. NaN where
            undefined, inf where nothing is wrong.
        """
        found = [
            np.full((4, self._count, len(frames)), np.nan) for frames in map(self._frames, self._windows)
        ]
        silent = {index for index in self._heard if self._is_silent(estimates[index])}
        if len(silent) == len(self._heard):
            return found
        signals = _as_museval(estimates[self._heard])  # [H, N, C]
        for place, index in enumerate(self._heard):
            if index in silent:  # stands in, so that the others' windows count; its figures are dropped
                signals[place] = self._references[place]
        filters = self._filters(signals)
        for window, values in zip(self._windows, found, strict=True):
            for number, frame in enumerate(self._frames(window)):
                values[:, self._heard, number] = self._frame(signals, filters, frame)
            values[:, sorted(silent)] = np.nan
            if len(self._heard) == 1:
                values[2] = np.nan  # no source that could interfere
        return found

    def _filters(self, signals: NDArray[np.float64]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """Distortion filters of each estimate: onto all stems, and onto its own."""
        filters: list[tuple[NDArray[Any], NDArray[Any]]] = []
        for place, signal in enumerate(signals):
            if place and np.array_equal(signal, signals[0]):  # the mixture in every place
                onto_all = filters[0][0]
            else:
                onto_all = self._project(self._whole, self._spectra, signal)
            onto_own = self._project(self._whole[place, place], self._spectra[place], signal)
            filters.append((onto_all.reshape(len(signals), *onto_own.shape), onto_own))
        return filters

    def _project(self, whole: NDArray[Any], spectra: NDArray[Any], signal: NDArray[Any]) -> NDArray[Any]:
        try:
            filters = self._museval._compute_projection_filters(whole, spectra, signal)
        except (AttributeError, np.linalg.LinAlgError):
            # Stems with equal channels have singular correlations. museval's way out of it asks for
            # numpy.linalg.linalg, which NumPy 2 does not have.
            size = FILTER_SAMPLES
            loaded = whole + 0.0
            level = 1e-10 * float(np.abs(whole).max())
            for at in np.ndindex(whole.shape[:-2]):
                if _is_diagonal(at):
                    loaded[at] += level * np.eye(size)
            filters = self._museval._compute_projection_filters(loaded, spectra, signal)
        result: NDArray[Any] = filters
        return result

    def _frame(
        self, signals: NDArray[Any], filters: list[tuple[NDArray[Any], NDArray[Any]]], frame: slice
    ) -> NDArray[np.float64]:
        """Figures of one window, ``[4, H]``."""
        references, estimates = self._references[:, frame], signals[:, frame]
        values = np.full((4, len(signals)), np.nan)
        if self._museval._any_source_silent(references) or self._museval._any_source_silent(estimates):
            return values
        for place, (onto_all, onto_own) in enumerate(filters):
            parts = self._museval._bss_decomp_mtifilt(references, estimates[place], place, onto_all, onto_own)
            with np.errstate(divide="ignore"):  # nothing of the stem is -inf dB
                values[:, place] = self._museval._bss_crit(*parts, False)
        return values

    def _frames(self, window: int) -> list[slice]:
        return list(self._museval.Framing(window, window, self._references.shape[1]))

    def _is_silent(self, signal: NDArray[Any]) -> bool:
        """In museval's sense: the sum of the channels is zero throughout."""
        return bool(self._museval._any_source_silent(_as_museval(signal[None])))


def _is_diagonal(at: tuple[int, ...]) -> bool:
    """Whether ``[i, j, c, d]`` or ``[c, d]`` is a source and a channel with themselves."""
    return all(at[i] == at[i + 1] for i in range(0, len(at), 2))


def _as_museval(signals: NDArray[Any]) -> NDArray[np.float64]:
    """``[S, C, N] -> [S, N, C]``."""
    return np.ascontiguousarray(signals.transpose(0, 2, 1), np.float64)


def _metrics() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        from museval import metrics
    return metrics
