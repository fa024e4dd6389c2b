"""The networks of which ``tests/vectors/htdemucs.npz`` has vectors, as specifications."""

from __future__ import annotations

import sys
from pathlib import Path

from tfswa.runtime.model.spec import ChunkSpec, ModelSpec, StftSpec

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vectors"))

from make_htdemucs import CASES, FRAMES, N_FFT, SMALL, SOURCES


def recorded(case: str) -> ModelSpec:
    """The network that a vector was recorded of."""
    hyper = {"bottom_channels": 0, **SMALL, **CASES[case]}
    return ModelSpec(
        "htdemucs",
        SOURCES,
        channels=hyper.pop("audio_channels", 2),
        hyper=hyper,
        stft=StftSpec(
            N_FFT, N_FFT // 4, scale=N_FFT**-0.5, padding="reflect", offset=N_FFT // 8, endless=True
        ),
        chunk=ChunkSpec(FRAMES, context=3, fade=2, multiple=1),
        unseen_stem=None,
        samples=True,
    )
