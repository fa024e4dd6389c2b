"""Multichannel Wiener filtering of one chunk: stems that are spatially consistent and share the mixture.

Each stem j is modeled, at frame t and bin k, as Gaussian with covariance ``v_j[t, k] R_j[k]``: its power, and
a matrix ``[C, C]`` that says how it lies between the channels. One iteration learns both from the stems it is
given, R as an average over frames, weighted by power. Then it takes each stem anew from the mixture x::

    y_j = v_j R_j (e I + sum of v_i R_i)^-1 x

The covariance of what the filter is unsure of (the posterior's) is left out of the next R, as in open-unmix.

Sources: N. Duong, E. Vincent and R. Gribonval, Under-determined reverberant audio source separation using a
full-rank spatial covariance model, IEEE TASLP 18(7), 2010, section IV; A. Nugraha, A. Liutkus and E. Vincent,
Multichannel audio source separation with deep neural networks, IEEE/ACM TASLP 24(9), 2016, section III, whose
weighted average this is.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import UsageError
from tfswa.runtime.limits import MOST_WIENER, check_number
from tfswa.runtime.model.spec import ModelSpec

Spectra = NDArray[np.complex128]
Powers = NDArray[np.float64]

EPS = 1e-10  # added to a stem's total power; its root is e, which is added to the mixture's model
PEAK = 10.0  # the mixture's largest magnitude, to which these two are relative
_BLOCK = 1 << 16  # complex numbers of all stems in a block of bins, 1 MB: bins know nothing of each other


def check_wiener(iterations: object, spec: ModelSpec | None = None) -> None:
    """Refuse a number of iterations, or a model that they cannot help.

    Args:
        iterations: 0 for none.
        spec: the model's contract; None checks the number alone.

    Raises:
        UsageError: no whole number from 0 to ``MOST_WIENER``, or the model has one stem or gives samples.
    """
    check_number("wiener", iterations, MOST_WIENER, least=0)
    if iterations and spec is not None and len(spec.stems) < 2:
        raise UsageError(
            f"wiener {iterations} shares the mixture between at least 2 stems, the model has 1, "
            f"{spec.stems[0]}: leave it out, or choose another model"
        )
    if iterations and spec is not None and spec.samples:
        raise UsageError(
            f"wiener {iterations} works on spectra, the model also gives samples of its "
            f"{len(spec.outputs)} stems: leave it out, or choose another model"
        )


def refine(
    given: NDArray[np.complex64], mixture: NDArray[np.complex64], spec: ModelSpec, iterations: int
) -> NDArray[np.complex64]:
    """All stems of a chunk by some iterations; a residual stem begins as what the others leave.

    Bins that the network does not see are handed through. The mixture's peak is scaled to ``PEAK`` before and
    back after, so that a quiet chunk is treated as a loud one.

    Args:
        given: what the network gave, finite, ``[len(spec.outputs), C, T, K]``. Not modified.
        mixture: ``[C, T, K]``. Not modified.
        spec: says which stems are given, which one is the residual, and which bins are seen.
        iterations: at least 1.

    Returns:
        complex64 ``[S, C, T, K]`` in the order of ``spec.stems``, new memory. In seen bins the sum is the
        mixture but for the regularization e, and but for what all stems were silent in: no power, no share.
        All is zero where the mixture is.
    """
    stems = np.zeros((len(spec.stems), *mixture.shape), np.complex64)
    for name, spectrum in zip(spec.outputs, given, strict=True):
        stems[spec.stems.index(name)] = spectrum
    first, end = spec.stft.first_bin, spec.stft.first_bin + spec.stft.bins
    scale = _peak(mixture[..., first:end]) / PEAK or 1.0
    width = max(1, _BLOCK // math.prod(stems.shape[:-1]))
    for start in range(first, end, width):
        block = slice(start, min(start + width, end))
        y, x = (part[..., block].astype(np.complex128) / scale for part in (stems, mixture))
        if spec.residual_stem is not None:
            residual = spec.stems.index(spec.residual_stem)
            y[residual] = x - spec.residual_gain * np.delete(y, residual, axis=0).sum(axis=0)
        stems[..., block] = expectation_maximization(y, x, iterations) * scale
    return stems


def expectation_maximization(y: Spectra, x: Spectra, iterations: int) -> Spectra:
    """Estimates of stems, refined; computed in double precision.

    Args:
        y: initial estimates, ``[S, C, T, K]``, C being 1 or 2. Not modified.
        x: the mixture, ``[C, T, K]``, whose peak should be about ``PEAK``. Not modified.
        iterations: 0 gives the initial estimates.

    Returns:
        ``[S, C, T, K]``.
    """
    y, x = np.asarray(y, np.complex128), np.asarray(x, np.complex128)
    for _ in range(iterations):
        powers = (y.real**2 + y.imag**2).mean(axis=1)  # [S, T, K]
        spatial = _covariances(y) / (EPS + powers.sum(axis=1))  # [C, C, S, K]
        part = _explained(powers, spatial, x)  # [C, T, K]
        y = np.stack([powers * _applied(row, part) for row in spatial], axis=1)
    return y


def _peak(x: NDArray[np.complex64]) -> float:
    """The largest magnitude; times 2^k, to the bit, if the numbers are."""
    return math.sqrt((np.square(x.real, dtype=np.float64) + np.square(x.imag, dtype=np.float64)).max())


def _covariances(y: Spectra) -> Spectra:
    """Sums over frames of each stem's outer products between channels, ``[S, C, T, K] -> [C, C, S, K]``."""
    channels = range(y.shape[1])
    return np.array([[(y[:, i] * y[:, j].conj()).sum(axis=1) for j in channels] for i in channels])


def _explained(powers: Powers, spatial: Spectra, x: Spectra) -> Spectra:
    """The inverse of the mixture's model, ``e I + M`` with M the sum of ``v_j R_j``, times x: ``[C, T, K]``.

    The determinant is ``e^2 + e trace(M) + det(M)``. No term is negative: rounding cannot make it zero.
    """
    e = math.sqrt(EPS)
    left = _mixed(powers, spatial[0, 0].real)
    if len(x) == 1:
        return x / (e + left)
    right, cross = _mixed(powers, spatial[1, 1].real), _mixed(powers, spatial[0, 1])
    inner = np.maximum(0.0, left * right - (cross.real**2 + cross.imag**2))
    explained = np.stack(((e + right) * x[0] - cross * x[1], (e + left) * x[1] - cross.conj() * x[0]))
    explained /= e * e + e * (left + right) + inner
    return explained


def _mixed(powers: Powers, entry: NDArray[Any]) -> NDArray[Any]:
    """One entry of M: powers ``[S, T, K]`` times the stems' ``[S, K]``, summed over stems, ``[T, K]``."""
    total: NDArray[Any] = powers[0] * entry[0]
    for power, part in zip(powers[1:], entry[1:], strict=True):
        total += power * part
    return total


def _applied(row: Spectra, part: Spectra) -> Spectra:
    """A row of each stem's R, ``[C, S, K]``, times ``[C, T, K]``: ``[S, T, K]``."""
    total: Spectra = row[0][:, np.newaxis] * part[0]
    for entry, other in zip(row[1:], part[1:], strict=True):
        total += entry[:, np.newaxis] * other
    return total
