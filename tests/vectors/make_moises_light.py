"""Record what the package ``moises-light`` makes of known weights: python tests/vectors/make_moises_light.py

It needs moises-light 0.1.5 from PyPI; the tests need only what it writes, ``moises_light.npz``. Of each case
the stems of a short signal are kept, each ``STRIDE``-th sample of them. Behind the signal the package adds
silence, to have whole hops and a multiple of its strides; what it makes of that is cut off.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from known_numbers import known
from numpy.typing import NDArray

FILE = Path(__file__).with_name("moises_light.npz")
STRIDE = 7
FRAMES = 16
STFT = {"n_fft": 256, "hop_size": 64, "win_size": 256}
SAMPLES = (FRAMES - 1) * 64 - 37
COMMON: dict[str, Any] = {"freq_dim": 96, "n_bands": 4, "G": 8, "n_rope": 2, "bn_factor": 4}
CASES: dict[str, dict[str, Any]] = {
    "stereo": {"audio_channels": 2, "n_enc": 3, "n_dec": 1, "n_split_enc": 2, "n_split_dec": 1},
    "mono": {
        "audio_channels": 1,
        "n_enc": 2,
        "n_dec": 2,
        "n_split_enc": 1,
        "n_split_dec": 2,
        "edge_kernel_size": 5,
        "normalized": False,
        "use_mask": False,
        "norm_name": "InstanceNorm",
        "act_name": "GELU",
    },
    "wide": {
        "audio_channels": 2,
        "n_enc": 1,
        "n_dec": 0,
        "n_split_enc": 1,
        "freq_dim": 126,
        "n_bands": 2,
        "norm_name": "LayerNorm",
        "act_name": "Mish",
    },
}
SOURCES = {"stereo": ["vocals", "drums", "bass"], "mono": ["vocals"], "wide": ["vocals", "other"]}
ATTENTION = {
    "stereo": {"heads": 2, "dim_head": 8, "ff_mult": 2},
    "mono": {"heads": 3, "dim_head": 4, "ff_mult": 1.5},
    "wide": {"heads": 4, "dim_head": 6, "ff_mult": 1},
}


def weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A known weight; variances are above 0, and norms as loud as they are at first."""
    loud = name.endswith(("bn.weight", "bn1.weight", "bn2.weight", "running_var", "gamma"))
    return known(name, shape) + np.float32(1) if loud else known(name, shape)


def given(case: str) -> dict[str, Any]:
    """What the package's network is made of."""
    drops = dict.fromkeys(("attn_dropout", "proj_dropout", "ff_dropout"), 0.0)
    return {
        **STFT,
        **COMMON,
        **CASES[case],
        "sources": SOURCES[case],
        "transformer_params": {**ATTENTION[case], **drops, "flash_attn": False},
    }


def main() -> None:
    """Record all cases."""
    import torch
    from moises_light import MoisesLight

    constant = ("stft_window", "freq_pad", "rotary_embed.freqs", "num_batches_tracked")
    found: dict[str, Any] = {}
    for name in CASES:
        network = MoisesLight(**given(name)).eval()
        state = network.state_dict()
        for key, value in state.items():
            if not key.endswith(constant):
                state[key] = torch.from_numpy(weight(key, tuple(value.shape)))
        network.load_state_dict(state)
        audio = torch.from_numpy(known("audio", (1, CASES[name]["audio_channels"], SAMPLES), 0.1))
        with torch.no_grad():
            out = network(audio).numpy()[0]
        found[name] = out[..., ::STRIDE].astype(np.float32)
        found[f"{name}_keys"] = np.array(list(state))
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
