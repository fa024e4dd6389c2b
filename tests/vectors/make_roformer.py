"""Record what the package ``bs-roformer`` makes of known weights: python tests/vectors/make_roformer.py

It needs bs-roformer 1.2.4 from PyPI; the tests need only what it writes, ``roformer.npz``. Weights are of
``known``, a function of their names and shapes, so that they need not be stored. Of each case the stems of a
short signal are kept, each ``STRIDE``-th sample of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from known_numbers import known

FILE = Path(__file__).with_name("roformer.npz")
STRIDE = 7
SAMPLES = 39 * 16
MEL_SAMPLES = 19 * 441
WIDTHS = (2, 2, 4, 8, 17)
COMMON = {
    "depth": 2,
    "time_transformer_depth": 1,
    "dim": 32,
    "dim_head": 16,
    "heads": 2,
    "flash_attn": False,
    "attn_dropout": 0.0,
    "ff_dropout": 0.0,
}
SMALL = {"stft_n_fft": 64, "stft_hop_length": 16, "stft_win_length": 64, "dim_freqs_in": 33}
BS: dict[str, dict[str, Any]] = {
    "bs": {"num_stems": 2, "stereo": True, "freq_transformer_depth": 2, "zero_dc": True},
    "bs_mono": {"num_stems": 1, "stereo": False, "freq_transformer_depth": 1, "mask_estimator_depth": 3},
}
MEL: dict[str, dict[str, Any]] = {
    "mel": {"stereo": True, "linear_transformer_depth": 0},
    "mel_linear": {"stereo": False, "linear_transformer_depth": 1},
}


def main() -> None:
    """Record all cases."""
    import torch
    from bs_roformer import BSRoformer, MelBandRoformer

    found = {}
    for cases, kind, more, samples in (
        (BS, BSRoformer, {**SMALL, "freqs_per_bands": WIDTHS, "num_residual_streams": 1}, SAMPLES),
        (
            MEL,
            MelBandRoformer,
            {"num_residual_streams": 1, "add_value_residual": False, "freq_transformer_depth": 1},
            MEL_SAMPLES,
        ),
    ):
        for name, own in cases.items():
            given = {**COMMON, **more, **own}
            if kind is MelBandRoformer:
                given |= {"stft_hop_length": 441, "mask_estimator_depth": 2}
            network = kind(**given).eval()
            state = network.state_dict()
            for key, value in state.items():
                if not key.endswith("freqs"):
                    state[key] = torch.from_numpy(known(key, tuple(value.shape)))
            network.load_state_dict(state)
            channels = 2 if own["stereo"] else 1
            audio = torch.from_numpy(known("audio", (1, channels, samples), 0.1))
            with torch.no_grad():
                stems = network(audio).numpy().reshape(-1, channels, samples)
            found[name] = stems[..., ::STRIDE].astype(np.float32)
            found[f"{name}_keys"] = np.array(list(state))
            shapes = [tuple(value.shape) for value in state.values()]
            found[f"{name}_shapes"] = np.array(
                [(*shape, *[0] * (4 - len(shape))) for shape in shapes], np.int32
            )
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
