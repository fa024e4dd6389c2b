"""Record what the package ``pymss-core`` makes of known weights: python tests/vectors/make_bandit.py

It needs pymss-core 0.1.14 from PyPI; the tests need only what it writes, ``bandit.npz``. Of each case the
stems of a short signal are kept, each ``STRIDE``-th sample of them, and names and shapes of its weights.
The package divides normalized spectra by the root of n_fft; the suite that the published weights are of
divides them by that of the window's power.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from known_numbers import known
from numpy.typing import NDArray

FILE = Path(__file__).with_name("bandit.npz")
STRIDE = 7
N_FFT, HOP, FRAMES = 256, 64, 17
SAMPLES = (FRAMES - 1) * HOP
COMMON: dict[str, Any] = {"n_fft": N_FFT, "win_length": N_FFT, "hop_length": HOP, "normalized": True}
CASES: dict[str, dict[str, Any]] = {
    "first": {
        "n_bands": 12,
        "n_sqm_modules": 2,
        "emb_dim": 8,
        "rnn_dim": 6,
        "rnn_type": "GRU",
        "mlp_dim": 10,
    },
    "second": {
        "n_bands": 9,
        "n_sqm_modules": 1,
        "emb_dim": 6,
        "rnn_dim": 5,
        "rnn_type": "LSTM",
        "mlp_dim": 7,
    },
}
CASES["first"] |= {"in_channel": 1, "band_specs": "musical", "pad_mode": "constant", "fs": 44_100}
CASES["second"] |= {"in_channels": 1, "band_type": "musical", "pad_mode": "reflect", "fs": 48_000}
CASES["sum"] = {**CASES["second"], "use_freq_weights": False, "rnn_type": "GRU"}
STEMS = {
    "first": ["speech", "music", "effects"],
    "second": ["speech", "music", "sfx"],
    "sum": ["vocals", "other"],
}


def weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A known weight; those of norms are as loud as they are at first."""
    norm = len(shape) == 1 and name.endswith((".norm.weight", ".combined.0.weight"))
    return known(name, shape) + np.float32(1) if norm else known(name, shape)


def fixed(name: str) -> bool:
    """Whether the package makes these numbers itself."""
    return "freq_weights" in name or name.endswith("stft.window")


def main() -> None:
    """Record all cases."""
    import torch
    from pymss_core.modules.bandit.core.model import MultiMaskMultiSourceBandSplitRNNSimple
    from pymss_core.modules.bandit_v2.bandit import Bandit

    found: dict[str, Any] = {}
    for name, own in CASES.items():
        kind = MultiMaskMultiSourceBandSplitRNNSimple if name == "first" else Bandit
        network = kind(stems=STEMS[name], **{**COMMON, **own}).eval()
        state = network.state_dict()
        for key, value in state.items():
            if not fixed(key):
                value.copy_(torch.from_numpy(weight(key, tuple(value.shape))))
        audio = torch.from_numpy(known("audio", (2, 1, SAMPLES), 0.1))  # two channels are two items
        with torch.no_grad():
            out = network(audio).numpy()[:, :, 0].transpose(1, 0, 2)
        found[name] = out[..., ::STRIDE].astype(np.float32)
        found[f"{name}_keys"] = np.array(list(state))
        shapes = [(*value.shape, *[0] * (2 - value.dim())) for value in state.values()]
        found[f"{name}_shapes"] = np.array(shapes, np.int32)
        for key, value in state.items():
            if fixed(key):
                found[f"{name}_value_{key.replace('/', '|')}"] = value.numpy()
        print(name, found[name].shape, float(np.abs(out).max()))
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
