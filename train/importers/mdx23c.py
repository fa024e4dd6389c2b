"""MDX23C as it is published: what names and shapes of a state dictionary say about the network.

They tell all sizes, but neither the transform's window and hop nor what is between the layers. Without a
configuration the first are asked for, and the second is taken as nearly all published networks have it: GELU,
and instance norms where there are norms without statistics.
"""

from __future__ import annotations

import re
from typing import Any

from tfswa.runtime.errors import BundleError, ConfigError
from tfswa.runtime.model.spec import ChunkSpec, StftSpec
from tfswa.train.importers.kinds import Kind, Reading, Settings, Shapes
from tfswa.train.importers.shapes import numbered, shape_of

FIRST = "encoder_blocks.0.tfc_tdf.blocks.0."
FRAMES = 256  # of a chunk, where nobody says how many
ACTIVATION = re.compile(r"gelu|relu|elu(?P<alpha>\d*\.?\d+)")
GROUPS = re.compile(r"GroupNorm(?P<groups>[1-9]\d*)")


def read_mdx23c(shapes: Shapes, settings: Settings) -> Reading:
    """See ``Kind.read``.

    Raises:
        BundleError: shapes that no such network has.
        ConfigError: a configuration that contradicts them.
    """
    width, folded = shape_of(shapes, "first_conv.weight", 4)[:2]
    below, _, *stride = shape_of(shapes, "encoder_blocks.0.downscale.conv.2.weight", 4)
    narrow, bins = shape_of(shapes, f"{FIRST}tdf.2.weight", 2)
    given = shape_of(shapes, "final_conv.2.weight", 4)[0]
    if given % folded:
        raise BundleError(
            f"final_conv.2.weight gives {given} planes, first_conv.weight takes {folded}: stems would not "
            "be whole, it is another network"
        )
    channels, bands = _channels(folded, settings)
    hyper: dict[str, Any] = {
        "width": width,
        "growth": below - width,
        "depth": numbered(shapes, r"encoder_blocks\.(\d+)\."),
        "stride": tuple(stride),
        "blocks": numbered(shapes, r"encoder_blocks\.0\.tfc_tdf\.blocks\.(\d+)\."),
        "bands": bands,
        "narrowing": round(bins / narrow),
        **_norm(shapes, settings),
        **_activation(settings),
    }
    stft = _transform(bins * bands, settings)
    return Reading(
        "mdx23c",
        hyper,
        stft,
        _chunks(stft, stride[0] ** hyper["depth"], settings),
        channels,
        given // folded,
        unseen_stem=None,
    )


def _channels(folded: int, settings: Settings) -> tuple[int, int]:
    """Channels and sub-bands; the first layer tells their product. Stereo, if nobody says otherwise."""
    channels = settings.number("audio", "num_channels", 1 if folded % 4 else 2)
    bands = settings.number("model", "num_subbands", max(1, folded // (2 * channels)))
    if 2 * channels * bands != folded:
        raise ConfigError(
            f"first_conv.weight takes {folded} planes, {channels} channels in {bands} sub-bands are "
            f"{2 * channels * bands}: see to audio.num_channels and model.num_subbands of --config"
        )
    return channels, bands


def _norm(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    """What the norms are: those with statistics, those without, and none tell themselves apart."""
    if f"{FIRST}tfc1.0.running_mean" in shapes:
        return {"norm": "batch"}
    if f"{FIRST}tfc1.0.weight" not in shapes:
        return {"norm": "none"}
    groups = GROUPS.fullmatch(str(settings.of("model", "norm", "")))
    return {"norm": "group", "groups": int(groups["groups"])} if groups else {"norm": "instance"}


def _activation(settings: Settings) -> dict[str, Any]:
    said = str(settings.of("model", "act", "gelu"))
    known = ACTIVATION.fullmatch(said)
    if known is None:
        raise ConfigError(f"model.act {said!r} of the configuration is none of gelu, relu, elu and a number")
    return {"activation": "elu", "alpha": float(known["alpha"])} if known["alpha"] else {"activation": said}


def _transform(bins: int, settings: Settings) -> StftSpec:
    """The lowest bins of an unscaled transform, whose window and hop the weights do not tell."""
    said = settings.of("audio", "dim_f", bins)
    if said != bins:
        raise ConfigError(
            f"audio.dim_f {said} of the configuration contradicts the weights, which are of {bins} bins: "
            "it is another network's"
        )
    known: dict[str, Any] = {}
    for name, theirs, usual, words in (
        ("n_fft", "n_fft", 2 * bins, "n_fft"),
        ("hop", "hop_length", max(1, min(1024, bins // 2)), "the hop"),
    ):
        known[name] = settings.of("audio", theirs, settings.stft.get(name))
        if known[name] is None:
            settings.ask(f"{words} of the transform", f"--stft {name}={usual}")
            known[name] = usual
    rate = settings.number("audio", "sample_rate", 44_100)
    return settings.transform(**known, sample_rate=rate, padding="reflect", seen=(0, bins))


def _chunks(stft: StftSpec, multiple: int, settings: Settings) -> ChunkSpec:
    """As long as the configuration says, in frames or in samples."""
    usual = settings.number("inference", "dim_t", settings.number("audio", "dim_t", FRAMES))
    for section in ("audio", "inference"):
        if settings.of(section, "chunk_size"):
            usual = settings.number(section, "chunk_size", 1) // stft.hop + 1
    return settings.chunks_on_grid(stft, int(settings.chunk.get("frames", usual)), multiple)


MDX23C = Kind(
    "MDX23C",
    (r"first_conv\.weight$", r"encoder_blocks\.0\.tfc_tdf\.blocks\.0\.tdf\.", r"final_conv\.2\.weight$"),
    read_mdx23c,
)
