"""Record how other packages separate a song, chunk by chunk: python tests/vectors/make_chunked.py CASE...

Each case needs its package from PyPI, and two of them have one name, so that each may be recorded alone:

    bs         bs-roformer-infer 0.1.5
    mel        melband-roformer-infer 0.1.5
    mdx23c     mdxnet-infer 0.1.0
    scnet      pymss-core 0.1.14, whose network is given the chunks by MSST's rule here, since it has no own
    htdemucs   demucs 4.1.0

All of them also need stempeg, which brings the song. The tests need only what is written, ``chunked.npz``: of
each case each ``STRIDE``-th sample of the stems, and of the weights the names, the shapes and those values
that are not of ``known``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import make_htdemucs
import make_mdx23c
import make_roformer
import make_scnet
import numpy as np
from known_numbers import known
from numpy.typing import NDArray

FILE = Path(__file__).with_name("chunked.npz")
STRIDE = 11
START, SAMPLES = 88_200, 30_011  # of the song, which has vocals there
ROFORMER = {"dim": 32, "depth": 2, "dim_head": 16, "heads": 2, "stereo": True, "num_stems": 2}
CHUNKS = {"bs": 39 * 16, "mel": 19 * 441, "mdx23c": 960, "scnet": 15 * 64 - 37, "htdemucs": 2560 - 37}
OVERLAPS = {"bs": "msst:4", "mel": "msst:2", "mdx23c": "mean:4", "scnet": "msst:4", "htdemucs": "demucs:0.25"}
STEMS = ("vocals", "other")
Weight = Callable[[str, tuple[int, ...]], NDArray[np.float32]]


def _config(case: str, model: dict[str, Any], **audio: Any) -> dict[str, Any]:
    return {
        "audio": {"chunk_size": CHUNKS[case], "sample_rate": 44_100, **audio},
        "model": model,
        "training": {"instruments": list(STEMS), "target_instrument": None},
        "inference": {"num_overlap": 4, "batch_size": 1},
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "bs": _config(
        "bs",
        {
            **ROFORMER,
            "time_transformer_depth": 1,
            "freq_transformer_depth": 2,
            "freqs_per_bands": list(make_roformer.WIDTHS),
            **make_roformer.SMALL,
        },
    ),
    "mel": _config(
        "mel",
        {
            **ROFORMER,
            "num_bands": 60,
            "time_transformer_depth": 1,
            "freq_transformer_depth": 1,
            "dim_freqs_in": 1025,
            "sample_rate": 44_100,
            "stft_n_fft": 2048,
            "stft_hop_length": 441,
            "stft_win_length": 2048,
            "mask_estimator_depth": 2,
        },
    ),
    "mdx23c": _config(
        "mdx23c",
        {
            **make_mdx23c.COMMON,
            "norm": "InstanceNorm",
            "act": "gelu",
            "num_subbands": 4,
            "scale": [2, 2],
        },
        **{key: value for key, value in make_mdx23c.AUDIO.items() if key != "chunk_size"},
    ),
    "scnet": _config("scnet", {**make_scnet.STFT, **make_scnet.COMMON, **make_scnet.CASES["stereo"]}),
    "htdemucs": {
        "htdemucs": {"nfft": make_htdemucs.N_FFT, **make_htdemucs.SMALL, **make_htdemucs.CASES["wide"]},
        "training": {
            "instruments": list(STEMS),
            "samplerate": 44_100,
            "segment": f"{CHUNKS['htdemucs']}/44100",
        },
    },
}
CONFIGS["mdx23c"]["inference"]["dim_t"] = make_mdx23c.AUDIO["dim_t"]


def song() -> NDArray[np.float32]:
    """The sum ``[2, SAMPLES]`` of the stems of the song that stempeg brings."""
    import stempeg

    stems, _ = stempeg.read_stems(stempeg.example_stem_path())
    return np.ascontiguousarray(stems[1:].sum(axis=0)[START : START + SAMPLES].T, np.float32)


def weight_of(case: str) -> Weight:
    """How weights are known."""
    others = {"mdx23c": make_mdx23c.weight, "scnet": make_scnet.weight, "htdemucs": make_htdemucs.weight}
    return others.get(case, known)


def _with_weights(case: str, network: Any, found: dict[str, Any]) -> Any:
    import torch

    state = network.eval().state_dict()
    for name, value in state.items():
        if not value.is_floating_point() or name.endswith("freqs"):
            found[f"{case}_value_{name}"] = value.numpy()
        else:
            state[name] = torch.from_numpy(weight_of(case)(name, tuple(value.shape)))
    network.load_state_dict(state)
    found[f"{case}_keys"] = np.array(list(state))
    shapes = [(*value.shape, *[0] * (4 - value.dim())) for value in state.values()]
    found[f"{case}_shapes"] = np.array(shapes, np.int32)
    return network


def _namespace(table: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(**{k: _namespace(v) if isinstance(v, dict) else v for k, v in table.items()})


def _roformer(case: str, mixture: Any, found: dict[str, Any]) -> Any:
    if case == "bs":
        from bs_roformer.bs_roformer import BSRoformer as Network
        from bs_roformer.utils import demix_track
    else:
        from mel_band_roformer.mel_band_roformer import MelBandRoformer as Network
        from mel_band_roformer.utils import demix_track
    model = dict(CONFIGS[case]["model"])
    if case == "bs":
        model["freqs_per_bands"] = tuple(model["freqs_per_bands"])
    network = _with_weights(case, Network(**model, flash_attn=False), found)
    config = _namespace(CONFIGS[case])
    config.inference.num_overlap = int(OVERLAPS[case].split(":")[1])
    stems, _ = demix_track(config, network, mixture, "cpu")
    return np.stack([stems[name] for name in STEMS])


def _mdx23c(case: str, mixture: Any, found: dict[str, Any]) -> Any:
    from mdxnet_infer.config import AudioConfig, InferenceConfig, MDX23CConfig, ModelConfig, TrainingConfig
    from mdxnet_infer.inference import MDX23CInference

    model = {**CONFIGS[case]["model"], "scale": tuple(CONFIGS[case]["model"]["scale"])}
    config = MDX23CConfig(
        AudioConfig(**make_mdx23c.AUDIO),
        ModelConfig(**model),
        TrainingConfig(list(STEMS), None),
        InferenceConfig(dim_t=make_mdx23c.AUDIO["dim_t"]),
    )
    inference = MDX23CInference(config=config, device="cpu")
    _with_weights(case, inference.model, found)
    stems = inference.separate(mixture.numpy().T, overlap=int(OVERLAPS[case].split(":")[1]), progress=False)
    return np.stack([stems[name].T for name in STEMS])


def _scnet(case: str, mixture: Any, found: dict[str, Any]) -> Any:
    import torch
    from pymss_core.modules.scnet.scnet import SCNet

    network = _with_weights(case, SCNet(sources=list(STEMS), **CONFIGS[case]["model"]), found)
    return _by_msst(lambda part: network(part[None])[0], torch, mixture, CHUNKS[case], 4)


def _by_msst(network: Any, torch: Any, mixture: Any, chunk: int, overlap: int) -> Any:
    """A song by the rule of MSST, as ``runtime/stream/suites.py`` states it."""
    step, fade = chunk // overlap, chunk // 10
    border = chunk - step
    mixture = torch.nn.functional.pad(mixture, (border, border), mode="reflect")
    total, weight = torch.zeros(len(STEMS), *mixture.shape), torch.zeros(mixture.shape[-1])
    for start in range(0, mixture.shape[-1], step):
        part = mixture[:, start : start + chunk]
        there = part.shape[-1]
        mode = "reflect" if there > chunk // 2 else "constant"
        part = torch.nn.functional.pad(part, (0, chunk - there), mode=mode)
        window = torch.ones(chunk)
        if start > 0:
            window[:fade] = torch.linspace(0, 1, fade)
        if start + chunk < mixture.shape[-1]:
            window[-fade:] = torch.linspace(1, 0, fade)
        total[..., start : start + there] += (network(part) * window)[..., :there]
        weight[start : start + there] += window[:there]
    return (total / weight)[..., border:-border].numpy()


def _htdemucs(case: str, mixture: Any, found: dict[str, Any]) -> Any:
    from demucs.apply import apply_model
    from demucs.htdemucs import HTDemucs

    more = {"samplerate": 44_100, "segment": Fraction(CHUNKS[case], 44_100)}
    network = _with_weights(case, HTDemucs(list(STEMS), **CONFIGS[case]["htdemucs"], **more), found)
    return apply_model(network, mixture[None], shifts=0, overlap=0.25)[0].numpy()


RECORD = {"bs": _roformer, "mel": _roformer, "mdx23c": _mdx23c, "scnet": _scnet, "htdemucs": _htdemucs}


def main(cases: list[str]) -> None:
    """Record these cases; keep the others."""
    import torch

    found: dict[str, Any] = {}
    if FILE.exists():
        with np.load(FILE) as old:
            found = {key: old[key] for key in old if key.split("_")[0] not in cases}
    for case in cases:
        with torch.no_grad():
            stems = RECORD[case](case, torch.from_numpy(song()), found)
        assert stems.shape == (len(STEMS), 2, SAMPLES), stems.shape
        found[case] = stems[..., ::STRIDE].astype(np.float32)
        print(case, float(np.abs(stems).max()), float(np.std(stems)))
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main(sys.argv[1:] or list(RECORD))
