"""Ratios of energies in decibels: how close an estimate is to a reference.

All functions compute in float64 over every channel and every sample together, and take signals of one
shape ``[..., N]``. They return None where a measure is not defined, and ``math.inf`` for an estimate
that equals its reference; JSON has no infinity, so writers turn it into null.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import NonFiniteError, TfxError


def snr_db(reference: NDArray[Any], estimate: NDArray[Any]) -> float | None:
    """Signal-to-noise ratio: 10 log10(sum r^2 / sum (r - e)^2).

    The measure of drift between two implementations of one thing.

    Args:
        reference: r, ``[..., N]``, real.
        estimate: e, of the same shape.

    Returns:
        dB; ``math.inf`` where both are equal, None where the reference is silent.

    Raises:
        TfxError: the shapes differ.
        NonFiniteError: a signal holds NaN or Inf.
    """
    r, e = _pair(reference, estimate)
    return ratio_db(energy(r), energy(r - e))


def finite_db(value: float | None) -> float | None:
    """A figure for JSON and tables: None where it is not defined or not finite."""
    return value if value is not None and math.isfinite(value) else None


def likeness_db(reference: NDArray[Any], estimate: NDArray[Any]) -> float:
    """``snr_db`` for judging: defined for a silent reference too, which only silence is like.

    Raises:
        TfxError, NonFiniteError: as ``snr_db``.
    """
    value = snr_db(reference, estimate)
    if value is None:
        return -math.inf if estimate.any() else math.inf
    return value


def sdr_db(reference: NDArray[Any], estimate: NDArray[Any]) -> float | None:
    """Signal-to-distortion ratio of a whole song, "uSDR": the same ratio as ``snr_db``.

    Source: Y. Mitsufuji et al., Music Demixing Challenge 2021, Frontiers in Signal Processing 1, 2022,
    equation 1; there 1e-7 is added to both sums, here silence gives None instead. A data set's score is
    the mean over its songs.

    Args:
        reference: the true stem, ``[..., N]``.
        estimate: the separated stem, of the same shape.

    Returns:
        dB; ``math.inf`` where both are equal, None where the reference is silent.

    Raises:
        TfxError, NonFiniteError: as ``snr_db``.
    """
    return snr_db(reference, estimate)


def sdr_windows_db(
    reference: NDArray[Any], estimate: NDArray[Any], window_samples: int
) -> NDArray[np.float64]:
    """``sdr_db`` of each window of a song.

    Windows follow one another without overlap; what is left at the end is dropped, as museval drops it,
    and a signal shorter than one window is one window. A window in which the reference or the estimate
    is silent is NaN.

    The values are those of museval (BSSEval v4, image version): its distortion filters divide the error
    into parts whose sum is the whole error again, so they cancel out of the SDR. Two conventions differ.
    museval drops a window for all stems when any stem of the song is silent in it, here a stem's windows
    depend on that stem alone; and museval also takes a window for silent if its channels sum to zero.

    Args:
        reference: the true stem, ``[..., N]``.
        estimate: the separated stem, of the same shape.
        window_samples: length of a window, by custom one second.

    Returns:
        float64 ``[windows]`` in dB; NaN for silent windows, inf for windows that are equal.

    Raises:
        TfxError: the shapes differ, or ``window_samples`` is below 1.
        NonFiniteError: a signal holds NaN or Inf.
    """
    if window_samples < 1:
        raise TfxError(f"window_samples {window_samples} is below 1: give the length of a window in samples")
    r, e = _pair(reference, estimate)
    samples = r.shape[-1]
    length = min(window_samples, samples)
    starts = range(0, samples - length + 1, window_samples) if samples else range(0)
    values = []
    for start in starts:
        part_r, part_e = r[..., start : start + length], e[..., start : start + length]
        audible = bool(part_r.any()) and bool(part_e.any())
        value = ratio_db(energy(part_r), energy(part_r - part_e)) if audible else None
        values.append(math.nan if value is None else value)
    return np.array(values, np.float64)


def si_sdr_db(reference: NDArray[Any], estimate: NDArray[Any]) -> float | None:
    """Scale-invariant SDR: with a = <e, r> / <r, r>, 10 log10(sum (a r)^2 / sum (a r - e)^2).

    Source: J. Le Roux et al., SDR - half-baked or well done?, ICASSP 2019, section 3. One scale for all
    channels; means are not removed.

    Args:
        reference: r, ``[..., N]``.
        estimate: e, of the same shape.

    Returns:
        dB; ``math.inf`` where e is exactly a * r, ``-math.inf`` where it has nothing of r, None where
        either is silent.

    Raises:
        TfxError, NonFiniteError: as ``snr_db``.
    """
    r, e = _pair(reference, estimate)
    if not r.any() or not e.any():
        return None
    r *= np.vdot(r, e) / energy(r)  # in place, as below: a song of eight minutes has 0.3 GB a stem
    signal = energy(r)
    r -= e
    noise = energy(r)
    return -math.inf if signal == 0.0 else ratio_db(signal, noise)


def _pair(reference: NDArray[Any], estimate: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if reference.shape != estimate.shape:
        raise TfxError(
            f"reference {list(reference.shape)} and estimate {list(estimate.shape)} differ in shape: "
            "compare signals of the same channels and length"
        )
    for name, signal in (("reference", reference), ("estimate", estimate)):
        if not np.isfinite(signal).all():
            raise NonFiniteError(f"the {name} holds NaN or Inf: no measure of it means anything")
    return reference.astype(np.float64), estimate.astype(np.float64)


def energy(signal: NDArray[np.float64]) -> float:
    """Sum of squares."""
    return float(np.square(signal).sum())


def ratio_db(signal: float, noise: float) -> float | None:
    """Ratio of two energies: None where the first is 0, inf where only the second is."""
    if signal == 0.0:
        return None
    return math.inf if noise == 0.0 else 10.0 * math.log10(signal / noise)
