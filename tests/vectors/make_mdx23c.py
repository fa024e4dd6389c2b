"""Record what the package ``mdxnet-infer`` makes of known weights: python tests/vectors/make_mdx23c.py

It needs mdxnet-infer 0.1.0 from PyPI; the tests need only what it writes, ``mdx23c.npz``. Of each case the
stems of a short signal are kept, each ``STRIDE``-th sample of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from known_numbers import known
from numpy.typing import NDArray

FILE = Path(__file__).with_name("mdx23c.npz")
STRIDE = 7
AUDIO = {"n_fft": 256, "hop_length": 64, "dim_f": 96, "num_channels": 2, "dim_t": 16, "chunk_size": 960}
COMMON = {"num_channels": 8, "growth": 4, "num_scales": 2, "num_blocks_per_scale": 2, "bottleneck_factor": 3}
CASES: dict[str, dict[str, Any]] = {
    "instance": {"norm": "InstanceNorm", "act": "gelu", "num_subbands": 4, "scale": (2, 2), "stems": 2},
    "batch": {"norm": "BatchNorm", "act": "relu", "num_subbands": 2, "scale": (1, 2), "stems": 1},
    "group": {
        "norm": "GroupNorm4",
        "act": "elu0.5",
        "num_subbands": 4,
        "scale": (4, 2),
        "stems": 3,
        "num_blocks_per_scale": 1,
    },
    "none": {"norm": "none", "act": "gelu", "num_subbands": 1, "scale": (2, 4), "stems": 2},
}
STEMS = ("vocals", "drums", "other")


def weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A known weight; variances are above 0, and norms as loud as they are at first."""
    numbers = known(name, shape)
    return numbers + np.float32(1) if name.endswith("running_var") or ".0.weight" in name else numbers


def main() -> None:
    """Record all cases."""
    import torch
    from mdxnet_infer.config import AudioConfig, MDX23CConfig, ModelConfig, TrainingConfig
    from mdxnet_infer.model import TFC_TDF_net

    found: dict[str, Any] = {}
    for name, own in CASES.items():
        model = {**COMMON, **own}
        stems = model.pop("stems")
        training = TrainingConfig(list(STEMS[:stems]), STEMS[0] if stems == 1 else None)
        config = MDX23CConfig(AudioConfig(**AUDIO), ModelConfig(**model), training)
        network = TFC_TDF_net(config, torch.device("cpu")).eval()
        state = network.state_dict()
        for key, value in state.items():
            if value.is_floating_point():
                state[key] = torch.from_numpy(weight(key, tuple(value.shape)))
        network.load_state_dict(state)
        audio = torch.from_numpy(known("audio", (1, 2, AUDIO["chunk_size"]), 0.1))
        with torch.no_grad():
            out = network(audio).numpy().reshape(stems, 2, -1)
        found[name] = out[..., ::STRIDE].astype(np.float32)
        found[f"{name}_keys"] = np.array(list(state))
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
