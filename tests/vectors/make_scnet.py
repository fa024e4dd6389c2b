"""Record what the package ``pymss-core`` makes of known weights: python tests/vectors/make_scnet.py

It needs pymss-core 0.1.14 from PyPI; the tests need only what it writes, ``scnet.npz``. Of each case the
stems of a short signal are kept, each ``STRIDE``-th sample of them. Behind the signal the package adds
silence, to have whole hops and an even count of frames; what it makes of that is cut off.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from known_numbers import known
from numpy.typing import NDArray

FILE = Path(__file__).with_name("scnet.npz")
STRIDE = 7
FRAMES = 16
STFT = {"nfft": 256, "hop_size": 64, "win_size": 256}
SAMPLES = (FRAMES - 1) * 64 - 37
CASES: dict[str, dict[str, Any]] = {
    "stereo": {"audio_channels": 2, "dims": [4, 8, 16], "band_stride": [1, 2, 4], "band_kernel": [3, 2, 4]},
    "mono": {
        "audio_channels": 1,
        "dims": [2, 8],
        "normalized": False,
        "band_SR": [0.225, 0.372, 0.403],
        "band_stride": [1, 4, 16],
        "band_kernel": [3, 4, 16],
        "conv_depths": [1, 2, 0],
        "compress": 2,
        "conv_kernel": 5,
        "num_dplayer": 4,
        "expand": 2,
    },
}
COMMON = {"num_dplayer": 2, "conv_depths": [2, 1, 1], "normalized": True, "band_SR": [0.175, 0.392, 0.433]}
SOURCES = {"stereo": ["drums", "bass", "vocals"], "mono": ["vocals", "other"]}


def weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A known weight; those of norms are as loud as they are at first."""
    norm = "norm_layers" in name or (name.endswith((".0.weight", ".4.weight")) and len(shape) == 1)
    return known(name, shape) + np.float32(1) if norm and name.endswith("weight") else known(name, shape)


def main() -> None:
    """Record all cases."""
    import torch
    from pymss_core.modules.scnet.scnet import SCNet

    found: dict[str, Any] = {}
    for name, own in CASES.items():
        network = SCNet(sources=SOURCES[name], **{**STFT, **COMMON, **own}).eval()
        state = network.state_dict()
        for key, value in state.items():
            state[key] = torch.from_numpy(weight(key, tuple(value.shape)))
        network.load_state_dict(state)
        audio = torch.from_numpy(known("audio", (1, own["audio_channels"], SAMPLES), 0.1))
        with torch.no_grad():
            out = network(audio).numpy()[0]
        found[name] = out[..., ::STRIDE].astype(np.float32)
        found[f"{name}_keys"] = np.array(list(state))
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
