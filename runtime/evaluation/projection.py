"""Least-squares projection of estimates onto true stems and their delays of 0 to 511 samples.

    estimate [C, N]  ~  sum over stems, channels and delays t of  filter[t] * stem[n - t]

The filters solve normal equations whose matrix holds the stems' correlations: a symmetric matrix of Toeplitz
blocks. It is factored once for a song (Cholesky, float64) and used for every estimate. Correlations are
summed block by block, so memory does not grow with the song.

Source: E. Vincent, R. Gribonval, C. Fevotte, Performance measurement in blind audio source separation, IEEE
TASLP 14(4), 2006; the multichannel form is that of museval 0.4.1 (BSSEval v4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.linalg
from numpy.typing import NDArray

from tfswa.runtime.evaluation.signals import Signal, excerpt, starts

FILTER_SAMPLES = 512  # museval's default, which all published figures use
_FFT = 1 << 14
_BLOCK = _FFT - 2 * (FILTER_SAMPLES - 1)  # samples of which an FFT gives all lags without wrapping around
_BLOCKS = 16  # transformed at a time

# A channel that holds less than this share of a stem's energy, once the channels are made uncorrelated, is
# the rounding of a stem with equal or scaled channels. It is no direction to project onto.
_DIRECTION = 1e-12

Piece = Callable[[int, int], NDArray[np.float64]]  # samples from start to stop, [channels, stop - start]


@dataclass(frozen=True)
class Filters:
    """How one estimate comes from the stems.

    Attributes:
        onto_all: of every direction of every stem, ``[D, T, C]``.
        onto_own: of the directions of its own stem, ``[d, T, C]``.
    """

    onto_all: NDArray[np.float64]
    onto_own: NDArray[np.float64]


class Projection:
    """The space that one song's true stems span.

    Each stem's channels are first made uncorrelated and scaled to the same energy: that changes neither the
    space nor the figures. It keeps a quiet stem from spoiling the condition, and leaves out the second
    channel of a stem that is mono.

    Args:
        references: true stems, each ``[C, N]``, none of them silent.
        loading: added to the diagonal, a share of a stem's energy. Acts as white noise in the stems, so that
            no filter amplifies what lies below it.
    """

    def __init__(self, references: Sequence[Signal], loading: float = 0.0) -> None:
        self._references = references
        self._directions = [_directions(reference) for reference in references]
        ends = np.cumsum([len(rows) for rows in self._directions])
        pairs = zip(ends, self._directions, strict=True)
        self.rows = [slice(int(end) - len(rows), int(end)) for end, rows in pairs]
        lags = _correlations(self.piece, int(ends[-1]), self.piece, int(ends[-1]), references[0].shape[1])
        self._own = [_Normal(lags[rows, rows], loading) for rows in self.rows]
        self._all = _Normal(lags, loading)

    @property
    def condition(self) -> float:
        """Condition number of the matrix in the 1-norm, as LAPACK estimates it; inf if it has no factor."""
        return self._all.condition

    def piece(self, start: int, stop: int) -> NDArray[np.float64]:
        """All directions of all stems, ``[D, stop - start]``; zero outside the song."""
        pairs = zip(self._directions, self._references, strict=True)
        return np.concatenate([rows @ excerpt(reference, start, stop) for rows, reference in pairs])

    def filters(self, estimates: Sequence[Signal]) -> list[Filters]:
        """Filters of each estimate, ``[C, N]``. Only where the condition is finite."""
        count, (channels, samples) = len(estimates), estimates[0].shape
        lags = _correlations(
            self.piece,
            self.rows[-1].stop,
            lambda start, stop: np.concatenate([excerpt(one, start, stop) for one in estimates]),
            count * channels,
            samples,
        )[:, :, FILTER_SAMPLES - 1 :]  # [D, S * C, T]: an estimate follows what it is made of
        found = []
        for place, rows in enumerate(self.rows):
            right = lags[:, place * channels : (place + 1) * channels].transpose(0, 2, 1)  # [D, T, C]
            found.append(Filters(self._all.solve(right), self._own[place].solve(right[rows])))
        return found


class _Normal:
    """The normal equations of some directions, factored."""

    def __init__(self, lags: NDArray[np.float64], loading: float) -> None:
        size = len(lags) * FILTER_SAMPLES
        blocks = np.empty((len(lags), FILTER_SAMPLES, len(lags), FILTER_SAMPLES))
        for at in np.ndindex(lags.shape[:2]):  # row t, column u: lag t - u
            blocks[at[0], :, at[1], :] = scipy.linalg.toeplitz(
                lags[at][FILTER_SAMPLES - 1 :], lags[at][FILTER_SAMPLES - 1 :: -1]
            )
        matrix = blocks.reshape(size, size)
        matrix.flat[:: size + 1] += loading
        norm = scipy.linalg.norm(matrix, 1, check_finite=False)
        self._factor, self.condition = None, math.inf
        try:  # of the transpose, which is the same matrix in the order that LAPACK works in place on
            factor = scipy.linalg.cholesky(matrix.T, lower=True, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError:
            return
        reciprocal, _ = scipy.linalg.lapack.dpocon(factor, norm, uplo="L")
        if reciprocal > 0:
            self._factor, self.condition = factor, 1.0 / float(reciprocal)

    def solve(self, right: NDArray[np.float64]) -> NDArray[np.float64]:
        """``[D, T, C]`` of the same shape."""
        assert self._factor is not None
        flat = right.reshape(-1, right.shape[-1])
        found = scipy.linalg.cho_solve((self._factor, True), flat, check_finite=False)
        return np.asarray(found).reshape(right.shape)


def _directions(reference: Signal) -> NDArray[np.float64]:
    """Matrix ``[d, C]`` that makes a stem's channels uncorrelated and of energy 1; d is C or less."""
    channels, samples = reference.shape
    energy = np.zeros((channels, channels))
    for start, stop in starts(samples, _BLOCK * _BLOCKS):
        piece = excerpt(reference, start, stop)
        energy += piece @ piece.T
    values, vectors = np.linalg.eigh(energy)
    kept = values > _DIRECTION * values.max()
    found: NDArray[np.float64] = (vectors[:, kept] / np.sqrt(values[kept])).T
    return found


def _correlations(
    first: Piece, first_channels: int, second: Piece, second_channels: int, samples: int
) -> NDArray[np.float64]:
    """Sum over n of ``first[i, n] * second[j, n + lag]``, ``[I, J, 2 T - 1]`` for lags of -(T - 1) to T - 1.

    A block of the first is set against the same block of the second with its neighborhood:

        first             |<- _BLOCK ->| zeros     |
        second   |< T - 1 |   _BLOCK   | T - 1 >|     = one FFT
    """
    total = np.zeros((_FFT // 2 + 1, first_channels, second_channels), np.complex128)
    reach = FILTER_SAMPLES - 1
    for begin, end in starts(samples, _BLOCK * _BLOCKS):
        blocks = range(begin, end, _BLOCK)
        ones = np.stack([first(start, start + _BLOCK) for start in blocks])  # [blocks, I, _BLOCK]
        twos = np.stack([second(start - reach, start + _BLOCK + reach) for start in blocks])
        left = scipy.fft.rfft(ones, _FFT).conj().transpose(2, 1, 0)  # [F, I, blocks]
        right = scipy.fft.rfft(twos, _FFT).transpose(2, 0, 1)  # [F, blocks, J]
        total += left @ right
    lags: NDArray[np.float64] = scipy.fft.irfft(total.transpose(1, 2, 0), _FFT)[:, :, : 2 * reach + 1]
    return lags
