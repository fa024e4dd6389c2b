"""Stems and estimates that no network made, as ``tfx evaluate`` hands them to its processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Audio = NDArray[Any]


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Of -20 dBFS."""
    return (np.random.default_rng(seed).standard_normal(shape) * 0.1).astype(np.float32)


def write_arrays(folder: Path, references: Audio, estimates: Audio, mixture: Audio | None = None) -> Path:
    """The three files that ``score_song`` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "mixture.npy", references.sum(axis=0) if mixture is None else mixture)
    np.save(folder / "references.npy", references)
    np.save(folder / "estimates.npy", estimates)
    return folder
