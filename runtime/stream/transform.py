"""The host's short-time Fourier transform and the plane layout that networks see.

Every path from samples to spectra and back goes through this file. Networks never hold a transform, so
that all backends are given exactly the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tfswa.runtime.errors import TfxError
from tfswa.runtime.model.spec import StftSpec

# Frames are transformed in blocks of about this many samples: 1 MB of float32 stays in the second-level
# cache, where one pass over a minute of stereo would page in 85 MB for each intermediate result.
_BLOCK_SAMPLES = 1 << 18


class Stft:
    """The transform of a ``StftSpec``, in float32.

    Frames are centered on multiples of the hop, and what lies outside the signal is zero. A signal of N
    samples has T = ``spec.frames(N)`` frames. With n_fft = 4 * hop and N a little above 3 * hop, T = 5::

        zeros          |<------- signal, N ------->| zeros
        ...............|-------|-------|-------|---+...|...............    one tick a hop
        [----------- frame 0 ----------]
                [----------- frame 1 ----------]
                                      ...
                                        [----------- frame 4 ----------]
        |<-- n_fft/2 ->|                               |<-- n_fft/2 ->|

    Every sample of the signal lies at or between two frame centers, where the sum of squared windows is
    at least 1/2; dividing the overlap-add by that sum is therefore well conditioned up to both ends.

    Results do not depend on how signals are grouped: each row of ``[..., N]`` and each frame is
    transformed by the same operations in the same order, whatever else is in the call and however many
    workers there are. That rests on pocketfft giving the same bits with and without its SIMD batches,
    which the tests assert for the installed SciPy.

    Args:
        spec: lengths, scaling.
        workers: threads per transform. 1 suits a pipeline that is already busy elsewhere.

    Attributes:
        block_frames: frames that are overlapped and added before the next. A part of a signal that begins
            at the center of a multiple of it has the bits of the whole, away from its ends.
    """

    def __init__(self, spec: StftSpec, workers: int = 1) -> None:
        self.spec = spec
        self.block_frames = max(1, _BLOCK_SAMPLES // spec.n_fft)
        self.workers = workers
        window = _hann(spec.n_fft)
        # Scaling rides on the windows: no pass of its own.
        self._analysis = (window * spec.scale).astype(np.float32)
        self._synthesis = (window / spec.scale).astype(np.float32)

    @property
    def place(self) -> str:
        """Where it computes, in words."""
        return "cpu"

    def forward(self, signal: NDArray[np.float32]) -> NDArray[np.complex64]:
        """Spectra of a signal.

        Args:
            signal: ``[..., N]`` samples, N >= 0; computed in float32 whatever the type. Not modified.

        Returns:
            complex64 ``[..., T, F + 1]``, Nyquist bin included, multiplied by ``spec.scale``; new memory.
        """
        n_fft, hop = self.spec.n_fft, self.spec.hop
        lead, samples = signal.shape[:-1], signal.shape[-1]
        frames = self.spec.frames(samples)
        spectrum = np.empty((*lead, frames, self.spec.bins + 1), np.complex64)
        if spectrum.size == 0:
            return spectrum
        padded = np.zeros((*lead, (frames - 1) * hop + n_fft), np.float32)
        padded[..., n_fft // 2 : n_fft // 2 + samples] = signal
        self._forward(padded, spectrum)
        return spectrum

    def inverse(self, spectrum: NDArray[np.complex64], samples: int) -> NDArray[np.float32]:
        """The signal that has these spectra; the least-squares one if none has them exactly.

        The imaginary parts of the first and the last bin cannot belong to a real signal and are ignored.
        Source: D. Griffin and J. Lim, Signal estimation from modified short-time Fourier transform,
        IEEE TASSP 32(2), 1984, equation 6.

        Args:
            spectrum: complex64 ``[..., T, F + 1]``, scaled as ``forward`` does. Not modified.
            samples: N, the length wanted; T must be ``spec.frames(N)``.

        Returns:
            float32 ``[..., N]``, new memory.

        Raises:
            TfxError: T or F + 1 do not suit the specification.
        """
        n_fft, hop = self.spec.n_fft, self.spec.hop
        expected = (self.spec.frames(samples), self.spec.bins + 1)
        if spectrum.shape[-2:] != expected:
            raise TfxError(
                f"a spectrum of [T, F + 1] = {list(spectrum.shape[-2:])} is not the {list(expected)} that "
                f"{samples} samples have: pass the length that the spectrum was made from"
            )
        lead, frames = spectrum.shape[:-2], expected[0]
        if spectrum.size == 0:
            return np.zeros((*lead, samples), np.float32)
        overlap = n_fft // hop
        # Frame t adds its part j, of one hop, to row t + j.
        rows = np.zeros((*lead, frames - 1 + overlap, hop), np.float32)
        self._inverse(spectrum, rows)
        inside = slice(n_fft // 2, n_fft // 2 + samples)
        signal: NDArray[np.float32] = rows.reshape(*lead, -1)[..., inside] * _gain(n_fft, hop, frames)[inside]
        return signal

    def _forward(self, padded: NDArray[np.float32], spectrum: NDArray[np.complex64]) -> None:
        """Fill in spectra ``[..., T, F + 1]`` of a signal ``[..., (T - 1) * hop + n_fft]``."""
        windows = sliding_window_view(padded, self.spec.n_fft, axis=-1)  # [..., samples, n_fft], a view
        windows = windows[..., :: self.spec.hop, :]  # [..., T, n_fft]
        for index in np.ndindex(spectrum.shape[:-2]):
            for block in self._blocks(spectrum.shape[-2]):
                spectrum[index][block] = scipy.fft.rfft(
                    windows[index][block] * self._analysis, workers=self.workers, overwrite_x=True
                )

    def _inverse(self, spectrum: NDArray[np.complex64], rows: NDArray[np.float32]) -> None:
        """Overlap-add spectra ``[..., T, F + 1]`` into zeros ``[..., T - 1 + n_fft / hop, hop]``."""
        overlap, hop = self.spec.n_fft // self.spec.hop, self.spec.hop
        for index in np.ndindex(spectrum.shape[:-2]):
            for block in self._blocks(spectrum.shape[-2]):
                pieces = scipy.fft.irfft(spectrum[index][block], self.spec.n_fft, workers=self.workers)
                pieces *= self._synthesis
                pieces = pieces.reshape(-1, overlap, hop)  # [t, n_fft] -> [t, j, hop]
                for j in range(overlap):
                    rows[index][block.start + j : block.stop + j] += pieces[:, j]

    def _blocks(self, frames: int) -> Iterator[slice]:
        for start in range(0, frames, self.block_frames):
            yield slice(start, min(start + self.block_frames, frames))


def pack(spectrum: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Lay spectra out as a network wants them; the Nyquist bin is left behind.

    Args:
        spectrum: complex64 ``[..., C, T, F + 1]``.

    Returns:
        float32 ``[..., 2*C, T, F]``, planes re(0), im(0), re(1), im(1), ...; new memory.
    """
    *lead, channels, frames, bins = spectrum.shape
    planes = np.empty((*lead, channels, 2, frames, bins - 1), np.float32)
    planes[..., 0, :, :] = spectrum.real[..., :-1]
    planes[..., 1, :, :] = spectrum.imag[..., :-1]
    return planes.reshape(*lead, 2 * channels, frames, bins - 1)  # [..., C, 2, T, F] -> [..., 2*C, T, F]


def unpack(planes: NDArray[np.float32], nyquist: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Undo ``pack``.

    Args:
        planes: float32 or float16 ``[..., 2*C, T, F]``.
        nyquist: complex64 ``[..., C, T]``, the bin that ``pack`` left behind (or zeros).

    Returns:
        complex64 ``[..., C, T, F + 1]``, new memory.

    Raises:
        TfxError: the two shapes do not belong together.
    """
    *lead, doubled, frames, bins = planes.shape
    channels = doubled // 2
    if doubled % 2 or nyquist.shape != (*lead, channels, frames):
        raise TfxError(
            f"planes {list(planes.shape)} and Nyquist bins {list(nyquist.shape)} do not belong together: "
            "they must be [..., 2*C, T, F] and [..., C, T]"
        )
    pairs = planes.reshape(*lead, channels, 2, frames, bins)  # [..., 2*C, T, F] -> [..., C, 2, T, F]
    spectrum = np.empty((*lead, channels, frames, bins + 1), np.complex64)
    spectrum.real[..., :-1] = pairs[..., 0, :, :]
    spectrum.imag[..., :-1] = pairs[..., 1, :, :]
    spectrum[..., -1] = nyquist
    return spectrum


def _hann(length: int) -> NDArray[np.float64]:
    """The periodic Hann window, sin^2(pi * n / length)."""
    window: NDArray[np.float64] = np.sin(np.pi * np.arange(length) / length) ** 2
    return window


@lru_cache(maxsize=4)  # a stream asks for one length again and again; four songs' worth is bounded
def _gain(n_fft: int, hop: int, frames: int) -> NDArray[np.float32]:
    """1 / (sum of squared windows of ``frames`` frames), ``[(frames - 1) * hop + n_fft]``; 1 where it is 0.

    It is 0 on the first sample only, which lies outside the signal.
    """
    overlap = n_fft // hop
    squares = (_hann(n_fft) ** 2).reshape(overlap, hop)
    rows = np.zeros((frames - 1 + overlap, hop))
    for j in range(overlap):
        rows[j : j + frames] += squares[j]
    total = rows.reshape(-1)
    return (1.0 / np.where(total == 0.0, 1.0, total)).astype(np.float32)
