"""Moises-Light as its package has it: what names and shapes of a state dictionary say about the network.

They tell all sizes and the transform's window, but neither its hop nor what the network gives. All published
sizes of 6144 samples have a hop of 1024, and give masks: that is taken where no configuration says otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tfswa.runtime.errors import BundleError, ConfigError
from tfswa.runtime.model.spec import ChunkSpec, StftSpec
from tfswa.train.blocks.gated import rotary_freqs
from tfswa.train.importers.kinds import Kind, Reading, Settings, Shapes
from tfswa.train.importers.shapes import numbered, shape_of

USUAL_N_FFT, USUAL_HOP = 6144, 1024
CHUNK = 264_600  # samples, 6 s
STEMS = ("vocals", "drums", "bass", "other")  # of all sizes that the package has
TURN = "bottleneck.rope_blocks.0.time_transformer.layers.0."
NORMS = {"InstanceNorm": "instance", "LayerNorm": "layer"}
ACTIVATIONS = {
    "ReLU": "relu",
    "GELU": "gelu",
    "LeakyReLU": "leaky_relu",
    "Softplus": "softplus",
    "SiLU": "silu",
    "Mish": "mish",
}


def read_moises_light(shapes: Shapes, settings: Settings) -> Reading:
    """See ``Kind.read``.

    Raises:
        BundleError: shapes that no such network has.
        ConfigError: a configuration that contradicts them.
    """
    width, planes, kernel = shape_of(shapes, "first_conv.conv.weight", 4)[:3]
    folded = shape_of(shapes, "final_conv.weight", 4)[0]
    narrow, narrowed = shape_of(shapes, "encoder_blocks.0.tdf.fc1.weight", 2)
    if planes not in (2, 4) or folded % planes:
        raise BundleError(
            f"the network takes {planes} planes a sub-band and gives {folded} in all, a Moises-Light takes "
            "the real and imaginary parts of one or two channels, and gives as many: it is another network"
        )
    bands = folded // planes
    heads, dim = shape_of(shapes, f"{TURN}0.to_gates.weight", 2)
    inner = shape_of(shapes, f"{TURN}0.to_qkv.weight", 2)[0] // 3
    heavy = _counted(shapes, "dec_heavy_us.")
    hyper: dict[str, Any] = {
        "width": width,
        "depth": numbered(shapes, r"encoder_blocks\.(\d+)\."),
        "heavy": heavy,
        "bands": bands,
        "splits": numbered(shapes, r"encoder_blocks\.0\.split1\.(\d+)\."),
        "splits_up": numbered(shapes, r"dec_heavy_blocks\.0\.split1\.(\d+)\.") if heavy else 1,
        "narrowing": round(narrowed / narrow),
        "kernel": kernel,
        "turns": numbered(shapes, r"bottleneck\.rope_blocks\.(\d+)\."),
        "heads": heads,
        "dim_head": inner // heads,
        "mlp_ratio": shape_of(shapes, f"{TURN}1.net.1.weight", 2)[0] / dim,
        "mask": settings.flag("model", "use_mask", True),
        "norm": _norm(shapes, settings),
        "activation": _named("act_name", "ReLU", ACTIVATIONS, settings),
    }
    stft = _transform(bands * narrowed, shapes, settings)
    outputs = shape_of(shapes, "source_head.weight", 4)[0] // planes if "source_head.weight" in shapes else 1
    return Reading(
        "moises_light",
        hyper,
        stft,
        _chunks(stft, 2 ** hyper["depth"], settings),
        planes // 2,
        outputs,
        constants={
            r".*\.rotary_embed\.freqs": rotary_freqs(inner // heads).numpy(),
            "stft_window": torch.hann_window(stft.n_fft).numpy(),
            "freq_pad": np.zeros((1, planes, stft.all_bins - stft.bins, 1), np.float32),
        },
        default_stems=STEMS if outputs == len(STEMS) else None,
        unseen_stem=None,
    )


def _counted(shapes: Shapes, start: str) -> int:
    """Layers whose names begin so; there may be none."""
    return len({name[len(start) :].split(".")[0] for name in shapes if name.startswith(start)})


def _norm(shapes: Shapes, settings: Settings) -> str:
    """What the norms are; those with statistics tell themselves apart."""
    if "first_conv.bn.running_mean" in shapes:
        return "batch"
    return _named("norm_name", "InstanceNorm", NORMS, settings)


def _named(name: str, usual: str, known: dict[str, str], settings: Settings) -> str:
    said = str(settings.of("model", name, usual))
    if said not in known:
        raise ConfigError(f"model.{name} {said!r} of the configuration is none of {', '.join(known)}")
    return known[said]


def _transform(bins: int, shapes: Shapes, settings: Settings) -> StftSpec:
    """Normalized, of the lowest bins; a window as long as the transform, which its buffer tells."""
    n_fft = shape_of(shapes, "stft_window", 1)[0]
    all_bins = bins + shape_of(shapes, "freq_pad", 4)[2]
    if all_bins != n_fft // 2 + 1:
        raise ConfigError(
            f"a window of {n_fft} samples for a transform of {all_bins} bins: windows shorter than the "
            "transform are not known here"
        )
    for name, found in (("n_fft", n_fft), ("freq_dim", bins)):
        said = settings.of("model", name, found)
        if said != found:
            raise ConfigError(
                f"model.{name} {said} of the configuration contradicts the weights, which are of {found}: "
                "it is another network's"
            )
    hop = settings.of("model", "hop_size", USUAL_HOP if n_fft == USUAL_N_FFT else None)
    return settings.transform(
        n_fft=n_fft,
        hop=hop,
        sample_rate=settings.number("audio", "sample_rate", 44_100),
        scale=n_fft**-0.5 if settings.flag("model", "normalized", True) else 1.0,
        padding="reflect",
        seen=(0, bins),
    )


def _chunks(stft: StftSpec, multiple: int, settings: Settings) -> ChunkSpec:
    """Frames are filled up to a multiple of the strides, a hop at least, as the package does."""
    samples = settings.number("inference", "chunk_size", settings.number("audio", "chunk_size", CHUNK))
    frames = -(-(samples // stft.hop + 2) // multiple) * multiple
    return settings.chunks_on_grid(stft, int(settings.chunk.get("frames", frames)), multiple)


MOISES_LIGHT = Kind(
    "Moises-Light",
    (
        r"first_conv\.conv\.weight$",
        r"bottleneck\.rope_blocks\.0\.time_transformer\.layers\.0\.",
        r"encoder_blocks\.0\.tdf\.fc1\.weight$",
    ),
    read_moises_light,
    beyond={
        r"bottleneck\.rope_blocks\.\d+\.\w+\.(layers\.[1-9]|norm\.)": "several layers, or norms, in a turn",
    },
)
