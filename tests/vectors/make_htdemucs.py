"""Record what the package ``demucs`` makes of known weights: python tests/vectors/make_htdemucs.py

It needs demucs 4.1.0 from PyPI; the tests need only what it writes, ``htdemucs.npz``. Of each case are kept
the spectra of the stems, before the inverse transform, and the stems of a short signal, thinned out.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from make_roformer import known
from numpy.typing import NDArray

FILE = Path(__file__).with_name("htdemucs.npz")
STRIDE = 5
N_FFT, FRAMES = 512, 20
SAMPLES = FRAMES * N_FFT // 4
SMALL: dict[str, Any] = {"channels": 8, "depth": 3, "t_heads": 2, "dconv_comp": 4, "norm_starts": 3}
CASES: dict[str, dict[str, Any]] = {
    "wide": {"bottom_channels": 24, "t_layers": 5, "dconv_mode": 3},
    "plain": {"t_layers": 2, "dconv_mode": 1, "t_hidden_scale": 2.0, "freq_emb": 0.4, "emb_scale": 5},
    "other": {
        "audio_channels": 1,
        "t_layers": 3,
        "dconv_mode": 2,
        "norm_starts": 1,
        "context_enc": 1,
        "context": 0,
        "freq_emb": 0,
        "t_cross_first": True,
        "t_norm_out": False,
        "t_norm_in": False,
        "t_gelu": False,
        "t_layer_scale": False,
        "t_weight_pos_embed": 0.5,
        "t_max_period": 300.0,
    },
    "narrow": {"rewrite": False, "t_layers": 1, "dconv_mode": 0},
}
SOURCES = ("drums", "vocals")


def weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A known weight; factors are around 1, so that no part of a network is silent."""
    found = known(name, shape)
    is_factor = len(shape) == 1 and name.endswith((".weight", ".scale"))
    return (found + 1).astype(np.float32) if is_factor else found


def package(case: str, **more: Any) -> Any:
    """The package's network with known weights."""
    import torch
    from demucs.htdemucs import HTDemucs

    length = {"samplerate": 44_100, "segment": Fraction(SAMPLES, 44_100)}
    network = HTDemucs(list(SOURCES), nfft=N_FFT, **{**length, **SMALL, **CASES[case], **more}).eval()
    state = network.state_dict()
    network.load_state_dict({key: torch.from_numpy(weight(key, tuple(v.shape))) for key, v in state.items()})
    return network


def main() -> None:
    """Record all cases."""
    import torch

    found: dict[str, Any] = {}
    for case, own in CASES.items():
        network = package(case)
        spectra: list[Any] = []
        inverse = network._ispec
        network._ispec = lambda z, *rest, kept=spectra, of=inverse: kept.append(z) or of(z, *rest)
        audio = known("audio", (1, own.get("audio_channels", 2), SAMPLES), 0.3)
        with torch.no_grad():
            stems = network(torch.from_numpy(audio))[0].numpy()
        planes = torch.view_as_real(spectra[0][0].contiguous()).numpy()  # [S, C, F, T, 2]
        planes = planes.transpose(0, 1, 4, 3, 2)  # [S, C, 2, T, F]
        found[f"{case}_planes"] = planes.reshape(-1)[:: 4 * STRIDE].astype(np.float32)
        found[case] = stems[..., ::STRIDE].astype(np.float32)
        found[f"{case}_keys"] = np.array(list(network.state_dict()))
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
