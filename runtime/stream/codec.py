"""Between samples and tensors: a chunk to what a network takes, and what it gives to stems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.model.spec import INPUT, OUTPUT, SAMPLES, STEM_SAMPLES, ModelSpec
from tfswa.runtime.stream.samples import all_finite
from tfswa.runtime.stream.transform import Stft, pack, unpack
from tfswa.runtime.stream.wiener import refine

Audio = NDArray[np.float32]
Spectrum = NDArray[np.complex64]
"""Of one chunk: ``[C, T, K]``."""
Tensors = Mapping[str, NDArray[np.float32]]
"""What a network takes, or gives, by name; see ``ModelSpec``."""


def first_tensors(spec: ModelSpec, given: Tensors) -> dict[str, NDArray[np.float32]]:
    """What the network takes with a signal's first chunk: the given tensors, and zeros for what they lack.

    Args:
        spec: the model's contract.
        given: of B items; ``mixture`` must be among them.
    """
    items = len(given[INPUT])
    return {
        name: given[name] if name in given else np.zeros((items, *shape), np.float32)
        for name, shape in spec.takes.items()
    }


class Codec:
    """The host's half of a model; it holds no state of a signal.

    Args:
        spec: the model's contract.
        wiener: iterations by which stems are refined, see ``wiener.refine``; 0 for none.
    """

    def __init__(self, spec: ModelSpec, wiener: int = 0):
        self.spec, self.wiener = spec, wiener
        self._stft = Stft(spec.stft)

    def spectra(self, chunks: Audio) -> list[Spectrum]:
        """Spectra of ``[B, C, N]``: one transform per chunk, so that a batch changes no bit of it."""
        return [self._stft.forward(chunk) for chunk in chunks]

    def tensors(self, chunks: Audio, spectra: Sequence[Spectrum]) -> dict[str, NDArray[np.float32]]:
        """What the network takes of chunks ``[B, C, N]``: all but its state."""
        planes = np.stack([pack(spectrum, self.spec.stft) for spectrum in spectra])
        return {INPUT: planes, SAMPLES: chunks} if self.spec.samples else {INPUT: planes}

    def stems(self, chunk: Audio, spectrum: Spectrum, out: Tensors) -> Audio:
        """What the network gave of one chunk, without the batch, to all stems ``[S, C, N]``."""
        spec, given, gain = self.spec, self.spec.outputs, self.spec.residual_gain
        spectra = np.zeros((len(given), *spectrum.shape), np.complex64)  # [S, C, T, K]
        if spec.unseen_stem in given:
            spectra[given.index(spec.unseen_stem)] = spectrum
        with np.errstate(invalid="ignore", over="ignore"):  # the stream engine says it, with chunk and stem
            unpack(out[OUTPUT], spectra, spec.stft)
            if self.wiener and all_finite(out[OUTPUT]):
                spectra, given, gain = refine(spectra, spectrum, spec, self.wiener), spec.stems, 1.0
            stems = self._stft.inverse(spectra, chunk.shape[-1])
            if spec.samples:
                stems += out[STEM_SAMPLES]
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
