"""What rounding costs on held-out audio: SNR against the float32 network, and drift of SDR, by stem.

Measured on spectrograms, chunk by chunk, energies summed over all of them: a plan is one of hundreds, and
a chunk costs what its network costs. ``tfx parity`` then measures the artifact itself, on whole songs.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import NonFiniteError
from tfswa.runtime.spec import ModelSpec
from tfswa.runtime.stft import Stft, pack

if TYPE_CHECKING:
    from tfswa.calibration.corpus import Chunk

Planes = NDArray[np.float32]
Infer = Callable[[Planes], Planes]

SUPPOSED_SDR_DB = 10.0  # of a stem whose truth is unknown


@dataclass(frozen=True)
class Loss:
    """What a plan lost.

    Attributes:
        snr_db: float32 network against its difference, by stem; inf where there is none.
        drift_db: change of SDR against the true stems, by stem. Where no truth is known, what an
            independent error of that SNR takes from a stem of 10 dB.
        known: whether the true stems were.
    """

    snr_db: dict[str, float]
    drift_db: dict[str, float]
    known: bool

    @property
    def worst_snr_db(self) -> float:
        """Of the worst stem."""
        return min(self.snr_db.values())

    @property
    def worst_drift_db(self) -> float:
        """The largest change either way."""
        return max(map(abs, self.drift_db.values()))


class HeldOut:
    """Chunks that calibration did not see, and what the float32 network makes of them.

    The answers of the float32 network lie in a temporary folder: in memory is one chunk.

    Args:
        chunks: gives them, as often as it is asked; with true stems where they are known. Of a corpus of
            which one chunk lacks some, none count.
        spec: the model's contract.
        full: the float32 network.

    Raises:
        NonFiniteError: it gives NaN or Inf.
    """

    def __init__(self, chunks: Callable[[], Iterable[Chunk]], spec: ModelSpec, full: Infer):
        self._spec, self._stft, self._chunks = spec, Stft(spec.stft), chunks
        self._folder = Path(tempfile.mkdtemp(prefix="tfx-held-out-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self.known, self._count = True, 0
        for chunk in chunks():
            right = full(self._planes(chunk.mixture))
            if not np.isfinite(right).all():
                raise NonFiniteError(f"the float32 network gives NaN or Inf on {chunk.name}: train it again")
            np.save(self._answer(self._count), right)
            self.known = self.known and set(spec.stems) <= set(chunk.stems)
            self._count += 1

    def __len__(self) -> int:
        return self._count

    def measure(self, infer: Infer, step: Callable[[], None] = lambda: None) -> Loss:
        """Run a network of the same contract over all chunks.

        Args:
            infer: ``[1, 2*C, T, F] -> [1, S, 2*C, T, F]``.
            step: called after each chunk.

        Raises:
            NonFiniteError: it gives NaN or Inf.
        """
        stems = self._spec.stems
        right_energy, error, truth_energy, before, after = np.zeros((5, len(stems)))
        for number, chunk in enumerate(self._chunks()):
            right = np.load(self._answer(number), allow_pickle=False)
            found = infer(self._planes(chunk.mixture))
            if not np.isfinite(found).all():
                raise NonFiniteError(f"the network gives NaN or Inf on {chunk.name}")
            right_energy += _energies(right)
            error += _energies(right - found)
            if self.known:
                truth = np.stack([self._planes(chunk.stems[stem])[0] for stem in stems])[None]
                truth_energy += _energies(truth)
                before += _energies(truth - right)
                after += _energies(truth - found)
            step()
        snr = [_db(signal, noise) for signal, noise in zip(right_energy, error, strict=True)]
        if self.known:
            pairs = zip(truth_energy, before, after, strict=True)
            drift = [
                0.0 if late == early else _db(energy, late) - _db(energy, early)
                for energy, early, late in pairs
            ]
        else:
            drift = [-10 * math.log10(1 + 10 ** ((SUPPOSED_SDR_DB - value) / 10)) for value in snr]
        return Loss(dict(zip(stems, snr, strict=True)), dict(zip(stems, drift, strict=True)), self.known)

    def _answer(self, number: int) -> Path:
        return self._folder / f"{number}.npy"

    def _planes(self, audio: NDArray[np.float32]) -> Planes:
        return pack(self._stft.forward(audio[None]))


def _energies(stems: Planes) -> NDArray[np.float64]:
    """``[1, S, ...]`` to ``[S]``."""
    energy: NDArray[np.float64] = np.array([np.vdot(stem, stem) for stem in stems[0]], np.float64)
    return energy


def _db(signal: float, noise: float) -> float:
    if noise <= 0:
        return math.inf
    return 10 * math.log10(max(float(signal), 1e-30) / float(noise))
