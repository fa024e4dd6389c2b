"""Hybrid Transformer Demucs as it is published: what names and shapes of a state dictionary tell.

What they do not tell (the weight of the vectors of bins, the number of heads) is in the configuration, or in
the file of the package, or else it is what the package has by default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfswa.runtime.errors import BundleError, ConfigError
from tfswa.runtime.model.spec import ChunkSpec, StftSpec
from tfswa.train.families.htdemucs import HTDEMUCS as FAMILY
from tfswa.train.families.htdemucs import STEMS, STEMS_6
from tfswa.train.importers.demucs import MAX_PART, SECTION, length_in_seconds
from tfswa.train.importers.kinds import Kind, Reading, Settings, Shapes
from tfswa.train.importers.shapes import numbered, shape_of

USUAL_SECONDS = 7.8
USUAL_LEVEL = 0.2  # deviation of a mixed track: -14 dB of full scale
SAID = (  # hyper-parameters that weights do not show, and which the family calls as the package does
    "norm_groups",
    "dconv_init",
    "freq_emb",
    "emb_scale",
    "emb_smooth",
    "t_heads",
    "t_dropout",
    "t_gelu",
    "t_max_period",
    "t_weight_pos_embed",
    "rescale",
)
FIXED: Mapping[str, tuple[Any, ...]] = {  # values with which the package computes what the family does
    "cac": (True,),
    "channels_time": (None,),
    "multi_freqs": (None, (), []),
    "t_emb": ("sin",),
    "t_norm_in_group": (False,),
    "t_group_norm": (False,),
    "t_norm_first": (True,),
    "t_sparse_self_attn": (False,),
    "t_sparse_cross_attn": (False,),
}


def read_htdemucs(shapes: Shapes, settings: Settings) -> Reading:
    """See ``Kind.read``.

    Raises:
        BundleError: shapes that no such network has.
        ConfigError: a configuration that contradicts them, or asks for what the family does not do.
    """
    for name, allowed in FIXED.items():
        value = settings.of(SECTION, name)
        if value is not None and value not in allowed:
            raise ConfigError(f"{SECTION}.{name} {value!r} of the configuration is not computed here")
    first, wave = shape_of(shapes, "encoder.0.conv.weight", 4), shape_of(shapes, "tencoder.0.conv.weight", 3)
    channels, audio, kernel = first[0], wave[1], first[2]
    depth = numbered(shapes, r"encoder\.(\d+)\.")
    given = shape_of(shapes, f"tdecoder.{depth - 1}.conv_tr.weight", 3)[1]
    if wave[0] != channels or first[1] != 2 * audio or given % audio:
        raise BundleError(
            f"encoder.0.conv.weight is {list(first)} and tencoder.0.conv.weight {list(wave)}: they are of no "
            "network that takes spectra of complex numbers beside samples"
        )
    stride = kernel // 2
    n_fft = _n_fft(shapes, settings, stride)
    stft = settings.transform(
        n_fft=n_fft,
        hop=n_fft // 4,
        sample_rate=settings.number("training", "samplerate", 44_100),
        scale=n_fft**-0.5,
        padding="reflect",
        offset=n_fft // 8,
        endless=True,
    )
    hyper = {
        "channels": channels,
        "growth": shape_of(shapes, "encoder.1.conv.weight", 4)[0] // channels if depth > 1 else 2,
        "depth": depth,
        "kernel_size": kernel,
        "stride": stride,
        **_layers(shapes, settings, depth),
        **_transformer(shapes),
        **{name: settings.of(SECTION, name, getattr(FAMILY.hyper, name)) for name in SAID},
        "track_level": USUAL_LEVEL if settings.flag("inference", "normalize", False) else 1.0,
    }
    hyper["freq_emb"] = float(hyper["freq_emb"]) if "freq_emb.embedding.weight" in shapes else 0.0
    outputs = given // audio
    return Reading(
        "htdemucs",
        hyper,
        stft,
        _chunks(settings, stft),
        audio,
        outputs,
        default_stems={len(STEMS): STEMS, len(STEMS_6): STEMS_6}.get(outputs),
        unseen_stem=None,
    )


def _n_fft(shapes: Shapes, settings: Settings, stride: int) -> int:
    """The length of the transform: of the vectors of bins, one for each bin behind the first level."""
    told = tuple(shapes.get("freq_emb.embedding.weight", ()))
    n_fft = settings.number(SECTION, "nfft", 2 * stride * told[0] if told else FAMILY.stft.n_fft)
    if n_fft % 8 or (told and n_fft != 2 * stride * told[0]):
        raise ConfigError(
            f"{SECTION}.nfft {n_fft} of the configuration: the weights are of "
            f"{2 * stride * told[0] if told else 'a multiple of 8'}: see to --config"
        )
    return n_fft


def _chunks(settings: Settings, stft: StftSpec) -> ChunkSpec:
    """Chunks as long as the configuration says, to the sample."""
    samples = _samples(settings, stft.sample_rate)
    frames = stft.frames(samples)
    short = (frames - 1) * stft.hop + 2 * stft.offset - samples
    said = {} if "frames" in settings.chunk else {"short": short}
    return dataclasses.replace(settings, chunk={**said, **settings.chunk}).chunks(stft, frames)


def _samples(settings: Settings, rate: int) -> int:
    """N, of a chunk as long as the configuration says, or the package has it."""
    seconds = settings.of("training", "segment")
    if seconds is None:
        return settings.number("audio", "chunk_size", int(USUAL_SECONDS * rate))
    try:
        seconds = length_in_seconds(seconds) if isinstance(seconds, str) else float(seconds)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < MAX_PART / rate:
        raise ConfigError(
            f"training.segment {settings.of('training', 'segment')!r} of the configuration is no length of "
            "a chunk in seconds"
        )
    return int(seconds * rate)


def _layers(shapes: Shapes, settings: Settings, depth: int) -> dict[str, Any]:
    """What the convolutions are."""
    normed = [level for level in range(depth) if f"encoder.{level}.norm1.weight" in shapes]
    branches = [f"{part}.0.dconv.layers.0.0.weight" in shapes for part in ("encoder", "decoder")]
    found: dict[str, Any] = {
        "rewrite": "encoder.0.rewrite.weight" in shapes,
        "norm_starts": normed[0] if normed else depth,
        "dconv_mode": branches[0] + 2 * branches[1],
    }
    if found["rewrite"]:
        for name, part in (("context_enc", "encoder"), ("context", "decoder")):
            found[name] = shape_of(shapes, f"{part}.0.rewrite.weight", 4)[2] // 2
    if found["dconv_mode"]:
        part = "encoder" if branches[0] else "decoder"
        hidden, inputs, _ = shape_of(shapes, f"{part}.0.dconv.layers.0.0.weight", 3)
        found["dconv_comp"] = settings.of(SECTION, "dconv_comp", inputs / hidden)
        found["dconv_depth"] = numbered(shapes, rf"{part}\.0\.dconv\.layers\.(\d+)\.")
    return found


def _transformer(shapes: Shapes) -> dict[str, Any]:
    """What the transformer is."""
    start = "crosstransformer.layers.0."
    hidden, dim = shape_of(shapes, f"{start}linear1.weight", 2)
    wide = "channel_upsampler.weight" in shapes
    return {
        "bottom_channels": dim if wide else 0,
        "t_layers": numbered(shapes, r"crosstransformer\.layers\.(\d+)\."),
        "t_hidden_scale": hidden / dim,
        "t_norm_in": "crosstransformer.norm_in.weight" in shapes,
        "t_norm_out": f"{start}norm_out.weight" in shapes,
        "t_layer_scale": f"{start}gamma_1.scale" in shapes,
        "t_cross_first": f"{start}norm3.weight" in shapes,
    }


HTDEMUCS = Kind(
    "HTDemucs",
    (r"encoder\.0\.", r"tencoder\.0\.", r"tdecoder\.0\.", r"crosstransformer\.layers\.0\."),
    read_htdemucs,
    beyond={
        r"crosstransformer\.position_embeddings\.": "places that are learned",
        r"crosstransformer\.layers\.\d+\.(?:self|cross)_attn\.q\.": "attention of a few places",
        r"(?:en|de)coder\.\d+\.layers\.": "bands with weights of their own",
    },
)
