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

    A signal of N samples has T = ``spec.frames(N)`` frames; what lies outside is zero, or mirrored.
    With n_fft = 4 * hop and N a little above 3 * hop, T = 5::

        outside        |<------- signal, N ------->| outside
        ...............|-------|-------|-------|---+...|...............    one tick a hop
        [----------- frame 0 ----------]
                [----------- frame 1 ----------]
                                      ...
                                        [----------- frame 4 ----------]
        |<-- n_fft/2 ->|                               |<-- n_fft/2 ->|

    The overlap-add is divided by the sum of squared windows, which a ``StftSpec`` keeps from being too small
    anywhere within the signal; by that of an endless signal where it says so.

    Results do not depend on how signals are grouped: each row of ``[..., N]`` and each frame is
    transformed by the same operations in the same order, whatever else is in the call and however many
    workers there are. That rests on pocketfft giving the same bits with and without its SIMD batches,
    which the tests assert for the installed SciPy.

    Args:
        spec: lengths, window, padding, scaling.
        workers: threads per transform. 1 suits a pipeline that is already busy elsewhere.

    Attributes:
        block_frames: frames that are overlapped and added before the next. A part of a signal that begins
            at the center of a multiple of it has the bits of the whole, away from its ends.
    """

    def __init__(self, spec: StftSpec, workers: int = 1) -> None:
        self.spec = spec
        self.block_frames = max(1, _BLOCK_SAMPLES // spec.n_fft)
        self.workers = workers
        window = window_of(spec)
        # Scaling rides on the windows: no pass of its own.
        self._analysis = (window * spec.scale).astype(np.float32)
        self._synthesis = (window / spec.scale).astype(np.float32)

    def forward(self, signal: NDArray[np.float32]) -> NDArray[np.complex64]:
        """Spectra of a signal.

        Args:
            signal: ``[..., N]`` samples, N >= 0; computed in float32 whatever the type. Not modified.

        Returns:
            complex64 ``[..., T, K]``, all K = n_fft / 2 + 1 bins, multiplied by ``spec.scale``; new memory.
        """
        lead, samples = signal.shape[:-1], signal.shape[-1]
        frames = self.spec.frames(samples)
        spectrum = np.empty((*lead, frames, self.spec.all_bins), np.complex64)
        if spectrum.size == 0:
            return spectrum
        before, after = self.spec.outside(samples)
        if self.spec.padding == "reflect":
            filled, beside = self._filled(signal), [(0, 0)] * len(lead)
            padded = np.pad(filled, [*beside, (before, after - self.spec.fill)], "reflect")
        else:
            padded = np.zeros((*lead, before + samples + after), np.float32)
            padded[..., before : before + samples] = signal
        self._forward(padded, spectrum)
        return spectrum

    def _filled(self, signal: NDArray[np.float32]) -> NDArray[np.float32]:
        """With the zeros behind it that frames cover as if they were of it."""
        signal = signal.astype(np.float32, copy=False)
        if not self.spec.fill:
            return signal
        zeros = np.zeros((*signal.shape[:-1], self.spec.fill), np.float32)
        return np.concatenate((signal, zeros), axis=-1)

    def planes(self, signal: NDArray[np.float32]) -> NDArray[np.float32]:
        """What a network sees of a signal: ``[..., C, N] -> [..., 2*C, T, F]``; see ``pack``."""
        return pack(self.forward(signal), self.spec)

    def inverse(self, spectrum: NDArray[np.complex64], samples: int) -> NDArray[np.float32]:
        """The signal that has these spectra; the least-squares one if none has them exactly.

        The imaginary parts of the first and the last bin cannot belong to a real signal and are ignored.
        Source: D. Griffin and J. Lim, Signal estimation from modified short-time Fourier transform,
        IEEE TASSP 32(2), 1984, equation 6.

        Args:
            spectrum: complex64 ``[..., T, K]``, scaled as ``forward`` does. Not modified.
            samples: N, the length wanted; T must be ``spec.frames(N)``.

        Returns:
            float32 ``[..., N]``, new memory.

        Raises:
            TfxError: T or K do not suit the specification.
        """
        hop = self.spec.hop
        expected = (self.spec.frames(samples), self.spec.all_bins)
        if spectrum.shape[-2:] != expected:
            raise TfxError(
                f"a spectrum of [T, K] = {list(spectrum.shape[-2:])} is not the {list(expected)} that "
                f"{samples} samples have: pass the length that the spectrum was made from"
            )
        lead, frames = spectrum.shape[:-2], expected[0]
        if spectrum.size == 0:
            return np.zeros((*lead, samples), np.float32)
        # Frame t adds its part j, of one hop, to row t + j; the last part may be shorter.
        rows = np.zeros((*lead, frames - 1 + _parts(self.spec), hop), np.float32)
        self._inverse(spectrum, rows)
        before, _ = self.spec.outside(samples)
        inside = slice(before, before + samples)
        signal: NDArray[np.float32] = (
            rows.reshape(*lead, -1)[..., inside] * gain_of(self.spec, frames)[inside]
        )
        return signal

    def _forward(self, padded: NDArray[np.float32], spectrum: NDArray[np.complex64]) -> None:
        """Fill in spectra ``[..., T, K]`` of a signal ``[..., (T - 1) * hop + n_fft]``."""
        windows = sliding_window_view(padded, self.spec.n_fft, axis=-1)  # [..., samples, n_fft], a view
        windows = windows[..., :: self.spec.hop, :]  # [..., T, n_fft]
        for index in np.ndindex(spectrum.shape[:-2]):
            for block in self._blocks(spectrum.shape[-2]):
                spectrum[index][block] = scipy.fft.rfft(
                    windows[index][block] * self._analysis, workers=self.workers, overwrite_x=True
                )

    def _inverse(self, spectrum: NDArray[np.complex64], rows: NDArray[np.float32]) -> None:
        """Overlap-add spectra ``[..., T, K]`` into zeros ``[..., T - 1 + ceil(n_fft / hop), hop]``."""
        hop = self.spec.hop
        for index in np.ndindex(spectrum.shape[:-2]):
            for block in self._blocks(spectrum.shape[-2]):
                pieces = scipy.fft.irfft(spectrum[index][block], self.spec.n_fft, workers=self.workers)
                pieces *= self._synthesis
                for j in range(_parts(self.spec)):
                    part = pieces[:, j * hop : (j + 1) * hop]
                    rows[index][block.start + j : block.stop + j, : part.shape[1]] += part

    def _blocks(self, frames: int) -> Iterator[slice]:
        for start in range(0, frames, self.block_frames):
            yield slice(start, min(start + self.block_frames, frames))


def pack(spectrum: NDArray[np.complex64], spec: StftSpec) -> NDArray[np.float32]:
    """Lay spectra out as a network wants them; bins that it does not see are left behind.

    Args:
        spectrum: complex64 ``[..., C, T, K]``.
        spec: says which F bins the network sees.

    Returns:
        float32 ``[..., 2*C, T, F]``, planes re(0), im(0), re(1), im(1), ...; new memory.
    """
    *lead, channels, frames, _ = spectrum.shape
    seen = spectrum[..., spec.first_bin : spec.first_bin + spec.bins]
    planes = np.empty((*lead, channels, 2, frames, spec.bins), np.float32)
    planes[..., 0, :, :] = seen.real
    planes[..., 1, :, :] = seen.imag
    return planes.reshape(*lead, 2 * channels, frames, spec.bins)  # [..., C, 2, T, F] -> [..., 2*C, T, F]


def unpack(planes: NDArray[np.float32], spectrum: NDArray[np.complex64], spec: StftSpec) -> None:
    """Undo ``pack``: fill in the bins that the network sees.

    Args:
        planes: float32 or float16 ``[..., 2*C, T, F]``.
        spectrum: complex64 ``[..., C, T, K]``; bins that the network does not see are left alone.
        spec: says which F bins the network sees.

    Raises:
        TfxError: the two shapes do not belong together.
    """
    *lead, doubled, frames, bins = planes.shape
    channels = doubled // 2
    expected = (*lead, channels, frames, spec.all_bins)
    if doubled % 2 or bins != spec.bins or spectrum.shape != expected:
        raise TfxError(
            f"planes {list(planes.shape)} and spectra {list(spectrum.shape)} do not belong together: "
            f"they must be [..., 2*C, T, {spec.bins}] and [..., C, T, {spec.all_bins}]"
        )
    pairs = planes.reshape(*lead, channels, 2, frames, bins)  # [..., 2*C, T, F] -> [..., C, 2, T, F]
    seen = slice(spec.first_bin, spec.first_bin + bins)
    spectrum.real[..., seen] = pairs[..., 0, :, :]
    spectrum.imag[..., seen] = pairs[..., 1, :, :]
    spectrum[..., spec.first_bin : max(spec.first_bin, spec.zero_below)] = 0.0


def window_of(spec: StftSpec) -> NDArray[np.float64]:
    """The window of a specification, float64 ``[n_fft]``."""
    return _hann(spec.n_fft) if spec.window == "hann" else np.ones(spec.n_fft)


def _hann(length: int) -> NDArray[np.float64]:
    """The periodic Hann window, sin^2(pi * n / length)."""
    window: NDArray[np.float64] = np.sin(np.pi * np.arange(length) / length) ** 2
    return window


def _parts(spec: StftSpec) -> int:
    """Hops that a frame reaches over."""
    return -(-spec.n_fft // spec.hop)


@lru_cache(maxsize=4)  # a stream asks for one length again and again; four songs' worth is bounded
def gain_of(spec: StftSpec, frames: int) -> NDArray[np.float32]:
    """1 / (sum of squared windows of ``frames`` frames), ``[(frames - 1 + parts) * hop]``; 1 where it is 0.

    It is 0 outside the signal only. Frames of an endless signal are everywhere.
    """
    squares = np.zeros(_parts(spec) * spec.hop)
    squares[: spec.n_fft] = window_of(spec) ** 2
    rows = np.zeros((frames - 1 + _parts(spec), spec.hop))
    for j, part in enumerate(squares.reshape(-1, spec.hop)):
        rows[slice(None) if spec.endless else slice(j, j + frames)] += part
    total = rows.reshape(-1)
    return (1.0 / np.where(total == 0.0, 1.0, total)).astype(np.float32)
