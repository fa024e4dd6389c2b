"""RoFormers as they are published: what names and shapes of a state dictionary say about the network.

Both layouts are read: that of the training suite most of them come from, and that of the package
``bs-roformer``, which wraps each layer once more (``.branch.``). Written from the names and shapes alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tfswa.runtime.errors import BundleError, ConfigError
from tfswa.runtime.model.spec import StftSpec
from tfswa.train.blocks.gated import rotary_freqs
from tfswa.train.families.roformer import mel_members
from tfswa.train.importers.kinds import Kind, Reading, Settings, Shapes
from tfswa.train.importers.shapes import numbered, shape_of

USUAL_N_FFT, LARGEST_N_FFT = 2048, 16_384  # the first is what nearly all have
FIRST_MASK = r"mask_estimators\.0\.to_freqs\.0\.0\.(\d+)\.weight$"
INNER = ".branch."  # what the package puts around a layer


def read_roformer(shapes: Shapes, settings: Settings) -> Reading:
    """See ``Kind.read``.

    Raises:
        BundleError: shapes that no such network has.
        ConfigError: a configuration that contradicts them.
    """
    plain = {name.replace(INNER, "."): tuple(shape) for name, shape in shapes.items()}
    turns = numbered(plain, r"layers\.(\d+)\.")
    at = _places(plain)
    time, bands = _along(at)
    start = f"layers.0.{time['number']}.layers.0."
    heads, dim = shape_of(plain, start + "0.to_gates.weight", 2)
    inner = shape_of(plain, start + "0.to_qkv.weight", 2)[0]
    hidden = shape_of(plain, start + "1.net.1.weight", 2)[0]
    linears = sum(re.match(FIRST_MASK, name) is not None for name in plain)
    mask_hidden = shape_of(plain, "mask_estimators.0.to_freqs.0.0.0.weight", 2)[0]
    sizes = [
        shape_of(plain, f"band_split.to_features.{band}.0.gamma", 1)[0]
        for band in range(numbered(plain, r"band_split\.to_features\.(\d+)\."))
    ]
    mel = "final_norm.gamma" not in plain
    channels, stft, widths = _bands(sizes, settings, mel=mel)
    hyper: dict[str, Any] = {
        "dim": dim,
        "depth": turns,
        "bands": "mel" if mel else "fixed",
        "widths": widths,
        "mel_bands": len(sizes),
        "heads": heads,
        "dim_head": inner // (3 * heads),
        "linear_depth": next((place["depth"] for place in at if place["linear"]), 0),
        "time_depth": time["depth"],
        "frequency_depth": bands["depth"],
        "mlp_ratio": hidden / dim,
        "mask_layers": linears,
        "mask_ratio": mask_hidden / dim if linears > 1 else 1.0,
        "norm": "each" if mel else "final",
        "value_residual": any("to_value_residual_mix" in name for name in plain),
        "skips": settings.flag("model", "skip_connection", False),
        "zero_dc": settings.flag("model", "zero_dc", False),
    }
    numbers = [place["number"] for place in at]
    return Reading(
        "roformer",
        hyper,
        stft,
        settings.chunks(stft),
        channels,
        numbered(plain, r"mask_estimators\.(\d+)\."),
        rename=lambda name: _ours(name, numbers),
        constants={r".*\.rotary_embed\.freqs": rotary_freqs(inner // (3 * heads)).numpy()},
    )


def _along(at: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The transformers along time and along bands.

    Raises:
        BundleError: there are not these two.
    """
    found = [place for place in at if not place["linear"]]
    if len(found) != 2:
        raise BundleError(
            f"a turn of the network has {len(found)} transformers with places, a RoFormer has 2, along time "
            "and along bands: it is another network"
        )
    return found[0], found[1]


def _places(plain: Shapes) -> list[dict[str, Any]]:
    """The transformers of the first turn, by their number, of how many layers, and among channels or not."""
    found = sorted({int(match[1]) for name in plain if (match := re.match(r"layers\.0\.(\d+)\.", name))})
    return [
        {
            "number": number,
            "depth": numbered(plain, rf"layers\.0\.{number}\.layers\.(\d+)\."),
            "linear": f"layers.0.{number}.layers.0.0.temperature" in plain,
        }
        for number in found
    ]


def _ours(name: str, numbers: Sequence[int]) -> str:
    """The network's name: no wrapper, and transformers of a turn counted from 0."""
    name = name.replace(INNER, ".")
    found = re.match(r"layers\.(\d+)\.(\d+)\.", name)
    if found is None or int(found[2]) not in numbers:
        return name
    return f"layers.{found[1]}.{numbers.index(int(found[2]))}.{name[found.end() :]}"


def _bands(sizes: Sequence[int], settings: Settings, *, mel: bool) -> tuple[int, StftSpec, tuple[int, ...]]:
    """Channels, the transform, and the bins of each band; ``sizes`` are 2 x channels x bins."""
    rate = settings.number("model", "sample_rate", settings.number("audio", "sample_rate", 44_100))
    said = settings.of("model", "stft_n_fft") is not None
    lengths = [settings.number("model", "stft_n_fft", USUAL_N_FFT)] if said else _powers()
    known: dict[str, Any] = {"hop": settings.of("model", "stft_hop_length"), "sample_rate": rate}
    for channels in (2, 1):
        if any(size % (2 * channels) for size in sizes):
            continue
        widths = tuple(size // (2 * channels) for size in sizes)
        for length in lengths:
            bins = length // 2 + 1
            stft_values = {**known, "n_fft": length, "padding": "reflect", "seen": (0, bins)}
            if not mel:
                if sum(widths) == bins:
                    return channels, settings.transform(**stft_values), widths
                continue
            trial = StftSpec(length, 1, rate, padding="reflect", seen=(0, bins))
            if _same_mel_bands(trial, widths):
                return channels, settings.transform(**stft_values), (bins,)
    what = f"stft_n_fft {lengths[0]} of the configuration" if said else "no power of two as n_fft"
    raise ConfigError(
        f"{len(sizes)} {'mel' if mel else 'fixed'} bands of {sum(sizes)} numbers in all: {what} "
        f"{'does not give' if said else 'gives'} such bands: see to --config"
    )


def _same_mel_bands(stft: StftSpec, widths: Sequence[int]) -> bool:
    try:
        members = mel_members(stft, len(widths))
    except ConfigError:
        return False
    return [len(bins) for bins in members] == list(widths)


def _powers() -> list[int]:
    lengths = [USUAL_N_FFT]
    length = 64
    while length <= LARGEST_N_FFT:
        lengths.append(length)
        length *= 2
    return lengths


ROFORMER = Kind(
    "RoFormer",
    (r"band_split\.to_features\.0\.", r"layers\.0\.\d+\.layers\.0\.0\.", r"mask_estimators\.0\."),
    read_roformer,
    beyond={
        r"layers\..*\bpope_?embed": "PoPE in place of rotary places",
        r"mask_estimators\.\d+\.segm": "a HyperACE mask head",
        r"mask_estimators\.\d+\.(?!to_freqs\.)": "a mask head of its own",
        r"layers\..*learned_value_residual_mix": "a learned mix of values",
    },
)
