"""Estimates that need no model: what a score is to be compared with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.evaluation.signals import BLOCK, Signal, SignalWriter, Silence, starts, stored
from tfswa.runtime.model.spec import StftSpec
from tfswa.runtime.stream.transform import Stft

Audio = NDArray[np.float32]

BASELINES = ("mixture", "silence", "oracle")
_AUDIBLE = 1e-5  # -100 dB: what float32 leaves of stems that sum to the mixture is far below


def baseline(
    name: str, mixture: Signal, references: Sequence[Signal], stft: StftSpec, folder: Path
) -> Sequence[Signal]:
    """Make one baseline's estimates.

    - ``mixture``: the mixture in place of each stem, the least that a model must beat;
    - ``silence``: nothing, whose global SDR is 0 dB by definition;
    - ``oracle``: the ideal ratio mask, see ``ratio_mask``: what a magnitude mask can reach.

    Args:
        name: one of ``BASELINES``.
        mixture: ``[C, N]``.
        references: the true stems, each ``[C, N]``.
        stft: the model's transform.
        folder: for a file, where the estimates need one.

    Returns:
        An estimate of each stem, float32 ``[C, N]``.
    """
    if name == "mixture":
        return [mixture] * len(references)
    if name == "silence":
        return [Silence(mixture.shape)] * len(references)
    assert name == "oracle", name
    path = folder / "oracle.npy"
    writer = SignalWriter(path, (len(references), mixture.shape[0], mixture.shape[1]))
    for block in ratio_mask(mixture, references, stft):
        writer.write(block)
    return stored(path)


def ratio_mask(mixture: Signal, references: Sequence[Signal], stft: StftSpec) -> Iterator[Audio]:
    """Separate with the ideal ratio mask of magnitudes, |S_s| / sum over t of |S_t|, channel by channel.

    What the mixture holds beside the stems is one more term of the sum. Source: A. Liutkus and R. Badeau,
    Generalized Wiener filtering with fractional power spectrograms, ICASSP 2015, with exponent 1.

    A part of the song is transformed with what lies around it, which is then dropped:

        |<- context ->|<------ step ------>|<- context ->|

    so that all parts together are, to the bit, what one transform of the whole song gives.

    Args:
        mixture: ``[C, N]``.
        references: each ``[C, N]``.
        stft: the transform.

    Yields:
        float32 ``[S, C, n]``, one part after the other.
    """
    transform, samples = Stft(replace(stft, endless=False)), mixture.shape[1]
    unit = transform.block_frames * stft.hop
    context = unit * math.ceil(stft.n_fft / unit)
    step = unit * math.ceil(BLOCK / unit)
    rest = _has_rest(mixture, references)
    for start, stop in starts(samples, step):
        begin, end = max(0, start - context), min(samples, stop + context)
        piece = mixture[:, begin:end]
        sources = np.stack([reference[:, begin:end] for reference in references])
        masked = _masked(transform, piece, sources, rest)
        yield masked[..., start - begin : stop - begin]


def _masked(transform: Stft, mixture: Audio, references: Audio, rest: Sequence[bool]) -> Audio:
    """Stems ``[S, C, n]`` of a part; ``rest`` says of each channel whether more than stems is in it."""
    estimates = np.empty_like(references)
    for channel in range(len(mixture)):  # one at a time: spectra are four times the audio
        spectrum = transform.forward(mixture[channel])
        sources = [*references[:, channel]]
        if rest[channel]:
            sources.append(_rest(mixture, references)[channel])
        magnitudes = [np.abs(transform.forward(source)) for source in sources]
        total = np.sum(magnitudes, axis=0)
        total[total == 0.0] = 1.0
        for index in range(len(references)):
            masked = (magnitudes[index] / total * spectrum).astype(np.complex64)
            estimates[index, channel] = transform.inverse(masked, mixture.shape[1])
    return estimates


def _has_rest(mixture: Signal, references: Sequence[Signal]) -> list[bool]:
    """Of each channel, whether what is left of the mixture can be heard."""
    peaks = np.zeros(mixture.shape[0])
    for start, stop in starts(mixture.shape[1], BLOCK):
        stems = np.stack([reference[:, start:stop] for reference in references])
        peaks = np.maximum(peaks, np.abs(_rest(mixture[:, start:stop], stems)).max(axis=1))
    return [bool(peak > _AUDIBLE) for peak in peaks]


def _rest(mixture: Audio, references: Audio) -> Audio:
    left: Audio = mixture - references.sum(axis=0)
    return left
