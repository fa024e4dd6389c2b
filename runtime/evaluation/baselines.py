"""Estimates that need no model: what a score is to be compared with."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.model.spec import StftSpec
from tfswa.runtime.stream.transform import Stft

Audio = NDArray[np.float32]

BASELINES = ("mixture", "silence", "oracle")
_AUDIBLE = 1e-5  # -100 dB: what float32 leaves of stems that sum to the mixture is far below


def baseline(name: str, mixture: Audio, references: Audio, stft: StftSpec) -> Audio:
    """Make one baseline's estimates.

    - ``mixture``: the mixture in place of each stem, the least that a model must beat;
    - ``silence``: nothing, whose global SDR is 0 dB by definition;
    - ``oracle``: the ideal ratio mask, see ``ratio_mask``: what a magnitude mask can reach.

    Args:
        name: one of ``BASELINES``.
        mixture: ``[C, N]``.
        references: the true stems, ``[S, C, N]``.
        stft: the model's transform.

    Returns:
        float32 ``[S, C, N]``, maybe a read-only view.
    """
    if name == "mixture":
        return np.broadcast_to(mixture, references.shape)
    if name == "silence":
        return np.broadcast_to(np.float32(0.0), references.shape)
    assert name == "oracle", name
    return ratio_mask(mixture, references, stft)


def ratio_mask(mixture: Audio, references: Audio, stft: StftSpec) -> Audio:
    """Separate with the ideal ratio mask of magnitudes, |S_s| / sum over t of |S_t|, channel by channel.

    What the mixture holds beside the stems is one more term of the sum. Source: A. Liutkus and R. Badeau,
    Generalized Wiener filtering with fractional power spectrograms, ICASSP 2015, with exponent 1.

    Args:
        mixture: ``[C, N]``.
        references: ``[S, C, N]``.
        stft: the transform.

    Returns:
        float32 ``[S, C, N]``.
    """
    transform = Stft(stft)
    estimates = np.empty_like(references)
    samples = mixture.shape[-1]
    for channel in range(mixture.shape[0]):  # one at a time: spectra are four times the audio
        spectrum = transform.forward(mixture[channel])
        magnitudes = [np.abs(transform.forward(source)) for source in _sources(mixture, references, channel)]
        total = np.sum(magnitudes, axis=0)
        total[total == 0.0] = 1.0
        for index in range(len(references)):
            masked = (magnitudes[index] / total * spectrum).astype(np.complex64)
            estimates[index, channel] = transform.inverse(masked, samples)
    return estimates


def _sources(mixture: Audio, references: Audio, channel: int) -> Iterator[Audio]:
    """The stems' signals of one channel, and what is left of the mixture if that can be heard."""
    yield from references[:, channel]
    rest = mixture[channel] - references[:, channel].sum(axis=0)
    if np.abs(rest).max(initial=0.0) > _AUDIBLE:
        yield rest
