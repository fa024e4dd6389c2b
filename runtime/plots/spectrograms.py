"""Spectrograms: power by time and frequency, in dB beside a full-scale sine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tfswa.runtime.escape import plot_text
from tfswa.runtime.plots.pictures import empty

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Audio = NDArray[np.float32]

N_FFT = 2048  # of a spectrogram, in samples
COLUMNS = 1200  # of a spectrogram, at most: more are not seen
RANGE_DB = 80.0  # of a spectrogram, from the loudest bin down


def spectrograms(rate: int, audio: Mapping[str, Audio], *, loudest_db: float | None = None) -> Figure:
    """Draw a spectrogram per signal, one above the other, all in one range of levels.

    Args:
        rate: samples per second.
        audio: by name, at least one, ``[C, N]``, N above 0; channels are averaged in power.
        loudest_db: level of the brightest color; that of the loudest bin if left out.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    levels = {name: _level_db(signal) for name, signal in audio.items()}
    top = loudest_db if loudest_db is not None else max(float(level.max()) for level in levels.values())
    figure = empty(10.0, 0.8 + 2.4 * len(levels))
    axes = figure.subplots(len(levels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axis, (name, level) in zip(axes, levels.items(), strict=True):
        image = axis.imshow(
            level,
            origin="lower",
            aspect="auto",
            extent=(0, audio[name].shape[1] / rate, 0, rate / 2000),
            vmin=top - RANGE_DB,
            vmax=top,
            cmap="magma",
        )
        axis.set(title=plot_text(name), ylabel="frequency / kHz")
    axes[-1].set_xlabel("time / s")
    figure.colorbar(image, ax=list(axes), label="level / dB")
    return figure


def spectrogram(
    rate: int,
    signal: Audio,
    *,
    start: float = 0.0,
    loudest_db: float | None = None,
    colors: str = "magma",
) -> Figure:
    """Draw one small spectrogram, as quiet as the signal may be.

    Args:
        rate: samples per second.
        signal: ``[C, N]``, N above 0; channels are averaged in power.
        start: of the signal, in seconds, for the axis.
        loudest_db: level of the brightest color; that of the loudest bin if left out.
        colors: name of a color map.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    peak = float(np.abs(signal).max()) or 1.0  # a difference lies far below the floor of _level_db
    level = _level_db((signal / peak).astype(np.float32)) + 20 * math.log10(peak)
    top = float(level.max()) if loudest_db is None else loudest_db
    figure = empty(3.6, 2.7)
    axis = figure.subplots()
    image = axis.imshow(
        level,
        origin="lower",
        aspect="auto",
        extent=(start, start + signal.shape[1] / rate, 0, rate / 2000),
        vmin=top - RANGE_DB,
        vmax=top,
        cmap=colors,
    )
    axis.set(xlabel="time / s", ylabel="frequency / kHz")
    axis.locator_params(axis="x", nbins=3)
    figure.colorbar(image, ax=axis, label="level / dB")
    return figure


def loudest_db(signals: Iterable[Audio]) -> float:
    """Level in dB of the loudest bin of signals ``[C, N]``, as ``spectrograms`` measures it."""
    return max((float(_level_db(signal).max()) for signal in signals), default=0.0)


def _level_db(signal: Audio) -> NDArray[np.float32]:
    """Levels ``[F, columns]`` of a signal ``[C, N]``; a full-scale sine has 0 dB."""
    window = np.hanning(N_FFT + 1)[:-1].astype(np.float32)
    padded = np.pad(signal.astype(np.float32), ((0, 0), (N_FFT // 2, N_FFT // 2)))
    hop = max(N_FFT // 4, math.ceil(signal.shape[1] / COLUMNS))
    frames = sliding_window_view(padded, N_FFT, axis=1)[:, ::hop]  # [C, columns, n_fft], a view
    power = np.zeros((frames.shape[1], N_FFT // 2 + 1), np.float32)
    for channel in frames:
        power += np.square(np.abs(scipy.fft.rfft(channel * window))) / len(frames)
    level: NDArray[np.float32] = 10 * np.log10(power.T * (2 / window.sum()) ** 2 + np.float32(1e-12))
    return level
