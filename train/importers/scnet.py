"""SCNet as it is published: what names and shapes of a state dictionary say about the network.

They tell neither where the bands end and by how much they are strided, nor the transform: a configuration is
needed. What it leaves out is as the training suite has it then.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from tfswa.runtime.errors import BundleError, ConfigError, UsageError
from tfswa.runtime.model.spec import StftSpec
from tfswa.train.families.scnet import BANDS, ScnetHyper
from tfswa.train.importers.kinds import Kind, Reading, Settings, Shapes
from tfswa.train.importers.shapes import numbered, shape_of

USUAL = ScnetHyper()
CHUNK = 485_100  # samples, 11 s


def read_scnet(shapes: Shapes, settings: Settings) -> Reading:
    """See ``Kind.read``.

    Raises:
        BundleError: shapes that no such network has.
        ConfigError: a configuration that contradicts them.
        UsageError: there is none.
    """
    levels = numbered(shapes, r"encoder\.(\d+)\.SDlayer\.")
    dims = [shape_of(shapes, f"encoder.{n}.SDlayer.convs.0.weight", 4)[:2] for n in range(levels)]
    planes = dims[0][1]
    given = shape_of(shapes, f"decoder.{levels - 1}.1.convtrs.0.weight", 4)[1]
    if planes not in (2, 4) or given % planes:
        raise BundleError(
            f"the network takes {planes} planes and gives {given}, an SCNet takes the real and imaginary "
            "parts of one or two channels, and gives as many for each stem: it is another network"
        )
    if not settings.config:
        raise UsageError(
            f"an SCNet of {given // planes} stems: its weights tell neither where its bands end nor the "
            "transform: add --config YAML"
        )
    first = dims[0][0]
    hidden = shape_of(shapes, "separation_net.dp_modules.0.lstm_layers.0.weight_hh_l0", 2)[1]
    hyper: dict[str, Any] = {
        "dims": tuple(outputs for outputs, _ in dims),
        "shares": tuple(map(float, _three(settings, "band_SR", (*USUAL.shares, 0.0))[:2])),
        "strides": _three(settings, "band_stride", USUAL.strides),
        "kernels": tuple(shape_of(shapes, f"encoder.0.SDlayer.convs.{n}.weight", 4)[2] for n in range(BANDS)),
        **_narrow(shapes, first, settings),
        "paths": numbered(shapes, r"separation_net\.dp_modules\.(\d+)\."),
        "expand": max(1, hidden // dims[-1][0]),
    }
    stft, frames = _transform(settings)
    chunk = dataclasses.replace(settings, chunk={"multiple": 2, **settings.chunk}).chunks(stft, frames)
    return Reading("scnet", hyper, stft, chunk, planes // 2, given // planes)


def _three(settings: Settings, name: str, usual: Sequence[float]) -> tuple[Any, ...]:
    """Numbers of the configuration, one for each band."""
    said = settings.of("model", name, usual)
    if not isinstance(said, Sequence) or len(said) != BANDS or not all(type(n) in (int, float) for n in said):
        raise ConfigError(f"model.{name} {said!r} of the configuration must be {BANDS} numbers, one a band")
    return tuple(said)


def _narrow(shapes: Shapes, dim: int, settings: Settings) -> dict[str, Any]:
    """How many 1D convolutions each band has, and what they are like."""
    start = r"encoder\.0\.conv_modules\.{}\.layers\.(\d+)\."
    depths = []
    for band in range(BANDS):
        pattern = start.format(band)
        there = any(re.match(pattern, name) for name in shapes)
        depths.append(numbered(shapes, pattern) if there else 0)
    found: dict[str, Any] = {"depths": tuple(depths)}
    if not any(depths):
        return found
    band = next(band for band in range(BANDS) if depths[band])
    layer = f"encoder.0.conv_modules.{band}.layers.0."
    inner = shape_of(shapes, f"{layer}6.weight", 3)[1]
    said = settings.of("model", "compress", dim / inner)
    if type(said) not in (int, float) or said <= 0 or int(dim / said) != inner:
        raise ConfigError(
            f"model.compress {said!r} of the configuration contradicts {layer}6.weight, {inner} channels "
            f"for {dim}: it is another network's"
        )
    return {**found, "compress": float(said), "kernel": shape_of(shapes, f"{layer}1.weight", 3)[2]}


def _transform(settings: Settings) -> tuple[StftSpec, int]:
    """Without a window, normalized, of all bins; and T, even.

    Behind a chunk, zeros fill the hop that it begins, and one more where T would be odd.
    """
    n_fft = settings.number("model", "nfft", 4096)
    if settings.number("model", "win_size", n_fft) != n_fft:
        raise ConfigError(
            f"model.win_size {settings.of('model', 'win_size')} of the configuration is not nfft {n_fft}: "
            "windows shorter than the transform are not known here"
        )
    samples = settings.number("inference", "chunk_size", settings.number("audio", "chunk_size", CHUNK))
    hop = settings.stft.get("hop")
    if type(hop) is not int or hop < 1:  # the transform refuses what was said
        hop = settings.number("model", "hop_size", 1024)
    frames = samples // hop + 2
    frames += frames % 2
    stft = settings.transform(
        n_fft=n_fft,
        hop=hop,
        sample_rate=settings.number("audio", "sample_rate", 44_100),
        scale=n_fft**-0.5 if settings.flag("model", "normalized", True) else 1.0,
        window="none",
        padding="reflect",
        seen=(0, n_fft // 2 + 1),
        fill=(frames - 1) * hop - samples,
    )
    return stft, frames


SCNET = Kind(
    "SCNet",
    (
        r"encoder\.0\.SDlayer\.convs\.0\.",
        r"separation_net\.dp_modules\.0\.",
        r"decoder\.0\.1\.convtrs\.0\.",
    ),
    read_scnet,
    beyond={
        r"mask_layer\.|pos_embed_f$": "a mask, and positions of bins",
        r"separation_net\.dp_modules\.\d+\.(time|freq)_layer\.": "transformers in place of LSTMs",
    },
)
