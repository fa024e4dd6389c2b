"""What rounding costs on held-out audio: SNR against the float32 network, and drift of SDR, by stem.

Measured on spectrograms, chunk by chunk, energies summed over all of them: a plan is one of hundreds, and
a chunk costs what its network costs. ``tfx parity`` then measures the artifact itself, on whole songs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import NonFiniteError
from tfswa.runtime.files.partial import new_temporary
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.stream.transform import Stft

if TYPE_CHECKING:
    from tfswa.calibration.corpus import Chunk

Planes = NDArray[np.float32]
Energies = NDArray[np.float64]
Infer = Callable[[Planes], Planes]

SUPPOSED_SDR_DB = 10.0  # of a stem whose truth is unknown
DOUBT = 2.0  # standard errors that a drift may be larger by on other audio


@dataclass(frozen=True)
class Loss:
    """What a plan lost.

    Attributes:
        snr_db: float32 network against its difference, by stem; inf where there is none.
        drift_db: change of SDR against the true stems, by stem; where no truth is known, as expected.
        known: whether the true stems were.
        expected_db: what an independent error of that SNR takes from a stem of the network's SDR, or where
            no truth is known, of 10 dB.
        scatter_db: standard error of the drift over chunks, by stem, by leaving out one at a time; empty
            where no truth is known.
    """

    snr_db: dict[str, float]
    drift_db: dict[str, float]
    known: bool
    expected_db: dict[str, float] = field(default_factory=dict)
    scatter_db: dict[str, float] = field(default_factory=dict)

    @property
    def worst_snr_db(self) -> float:
        """Of the worst stem."""
        return min(self.snr_db.values())

    @property
    def worst_drift_db(self) -> float:
        """What the worst stem may drift by on other audio: as measured and in doubt, or as expected.

        Of a few chunks, a large error may by accident take as much from some as it gives to others. On
        Spleeter a plan drifted by 0.02 dB on eight chunks, and by 0.08 dB on another song.
        """
        measured = (
            abs(drift) + DOUBT * self.scatter_db.get(stem, 0.0) for stem, drift in self.drift_db.items()
        )
        return max(*measured, *map(abs, self.expected_db.values()), 0.0)


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
        self._work = new_temporary("held-out")
        self.known, self._count = True, 0
        for chunk in chunks():
            right = full(self._planes(chunk.mixture))
            if not np.isfinite(right).all():
                raise NonFiniteError(f"the float32 network gives NaN or Inf on {chunk.name}: train it again")
            np.save(self._answer(self._count), right)
            self.known = self.known and set(spec.outputs) <= set(chunk.stems)
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
        stems = self._spec.outputs
        right_energy, lost = np.zeros((2, len(stems)))
        truth_energy, before, after = np.zeros((3, self._count, len(stems)))
        for number, chunk in enumerate(self._chunks()):
            right = np.load(self._answer(number), allow_pickle=False)
            found = infer(self._planes(chunk.mixture))
            if not np.isfinite(found).all():
                raise NonFiniteError(f"the network gives NaN or Inf on {chunk.name}")
            right_energy += _energies(right)
            lost += _energies(right - found)
            if self.known:
                truth = np.stack([self._planes(chunk.stems[stem])[0] for stem in stems])[None]
                truth_energy[number] = _energies(truth)
                before[number] = _energies(truth - right)
                after[number] = _energies(truth - found)
            step()
        snr = [_db(signal, noise) for signal, noise in zip(right_energy, lost, strict=True)]
        if self.known:
            drift = _drifts(truth_energy, before, after)
            expected = [_taken(-_db(early, error)) for early, error in zip(before.sum(0), lost, strict=True)]
            scatter = _scatter(truth_energy, before, after)
        else:
            drift = expected = [_taken(SUPPOSED_SDR_DB - value) for value in snr]
            scatter = []
        known = (snr, drift, expected, scatter)
        losses = [dict(zip(stems, values, strict=True)) if values else {} for values in known]
        return Loss(losses[0], losses[1], self.known, losses[2], losses[3])

    def _answer(self, number: int) -> Path:
        return self._work.path / f"{number}.npy"

    def _planes(self, audio: NDArray[np.float32]) -> Planes:
        return self._stft.planes(audio[None])


def _energies(stems: Planes) -> Energies:
    """``[1, S, ...]`` to ``[S]``."""
    energy: Energies = np.array([np.vdot(stem, stem) for stem in stems[0]], np.float64)
    return energy


def _drifts(truth: Energies, before: Energies, after: Energies) -> list[float]:
    """Change of SDR by stem, of energies ``[chunks, S]``."""
    drifts = []
    for energy, early, late in zip(truth.sum(0), before.sum(0), after.sum(0), strict=True):
        one, two = _db(energy, early), _db(energy, late)
        drifts.append(0.0 if two == one else two - one)  # inf too
    return drifts


def _scatter(truth: Energies, before: Energies, after: Energies) -> list[float]:
    """Standard error of ``_drifts`` by the jackknife: how it changes as each chunk is left out."""
    count = len(truth)
    if count < 2:
        return [0.0] * truth.shape[1]
    others = [np.arange(count) != number for number in range(count)]
    found = np.array([_drifts(truth[rest], before[rest], after[rest]) for rest in others])
    with np.errstate(invalid="ignore"):
        errors = np.sqrt((count - 1) / count * np.square(found - found.mean(axis=0)).sum(axis=0))
    return [float(error) for error in np.nan_to_num(errors, nan=np.inf)]


def _taken(more_db: float) -> float:
    """What an independent error takes from SDR, by its energy beside that of the error that is there."""
    return -10 * math.log10(1 + 10 ** (more_db / 10))


def _db(signal: float, noise: float) -> float:
    if noise <= 0:
        return math.inf
    return 10 * math.log10(max(float(signal), 1e-30) / float(noise))
