"""Between samples and planes: a chunk to what a network takes, and what it gives to stems."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.stream.samples import all_finite
from tfswa.runtime.stream.transform import pack, unpack
from tfswa.runtime.stream.transform_torch import transform_for
from tfswa.runtime.stream.wiener import refine

Audio = NDArray[np.float32]
Spectrum = NDArray[np.complex64]
"""Of one chunk: ``[C, T, K]``."""


class Codec:
    """The host's half of a model; it holds no state of a signal.

    Args:
        spec: the model's contract.
        device: where the transforms are computed, as for a backend.
        wiener: iterations by which stems are refined, see ``wiener.refine``; 0 for none.
    """

    def __init__(self, spec: ModelSpec, device: str, wiener: int = 0):
        self.spec, self.wiener = spec, wiener
        self._stft = transform_for(spec.stft, device)

    @property
    def place(self) -> str:
        """Where the transforms are computed."""
        return self._stft.place

    def spectra(self, chunks: Audio) -> list[Spectrum]:
        """Spectra of ``[B, C, N]``: one transform per chunk, so that a batch changes no bit of it."""
        return [self._stft.forward(chunk) for chunk in chunks]

    def planes(self, spectra: Sequence[Spectrum]) -> NDArray[np.float32]:
        """What the network takes: ``[B, 2*C, T, F]``."""
        return np.stack([pack(spectrum, self.spec.stft) for spectrum in spectra])

    def stems(self, chunk: Audio, spectrum: Spectrum, out: NDArray[np.float32]) -> Audio:
        """One chunk's network output ``[S, 2*C, T, F]`` to all stems ``[S, C, N]``."""
        spec, given, gain = self.spec, self.spec.outputs, self.spec.residual_gain
        spectra = np.zeros((len(given), *spectrum.shape), np.complex64)  # [S, C, T, K]
        if spec.unseen_stem in given:
            spectra[given.index(spec.unseen_stem)] = spectrum
        with np.errstate(invalid="ignore", over="ignore"):  # the stream engine says it, with chunk and stem
            unpack(out, spectra, spec.stft)
            if self.wiener and all_finite(out):
                spectra, given, gain = refine(spectra, spectrum, spec, self.wiener), spec.stems, 1.0
            stems = self._stft.inverse(spectra, chunk.shape[-1])
            if given != spec.stems:
                silent = np.zeros_like(chunk)
                stems = np.stack([stems[given.index(s)] if s in given else silent for s in spec.stems])
            if spec.residual_stem is not None:
                residual = stems[spec.stems.index(spec.residual_stem)]
                total = stems.sum(axis=0)
                if gain != 1.0:
                    total += np.float32(gain - 1.0) * (total - residual)
                residual += chunk - total
        return stems
