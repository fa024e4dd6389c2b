"""Open-Unmix as it is published: what names and shapes of a state dictionary tell.

It is of one target; or of several, each under its name, as in the package's ``Separator``, or where files of
one target were put together::

    fc1.weight, lstm.weight_ih_l0, ...                      a target, in a file of its own
    vocals.fc1.weight, ..., drums.fc1.weight, ...           several
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from tfswa.runtime.errors import BundleError
from tfswa.train.families.open_unmix import OPEN_UNMIX as FAMILY
from tfswa.train.importers.kinds import Kind, Reading, Settings, Shapes
from tfswa.train.importers.shapes import hann, numbered, shape_of

MARK = "input_mean"  # ends one name of every target
TARGET = r"(?:[^.]+\.)?"  # what names of a target begin with
USUAL_RATE = 44_100


def read_open_unmix(shapes: Shapes, settings: Settings) -> Reading:
    """See ``Kind.read``.

    Raises:
        BundleError: shapes that no such network has.
        ConfigError: a configuration that contradicts them.
    """
    starts = [name.removesuffix(MARK) for name in shapes if re.fullmatch(TARGET + MARK, name)]
    starts = sorted(starts, key=_order(starts, settings))
    first = starts[0]
    (seen,), (bins,) = shape_of(shapes, first + MARK, 1), shape_of(shapes, f"{first}output_mean", 1)
    hidden, inputs = shape_of(shapes, f"{first}fc1.weight", 2)
    channels, rest = divmod(inputs, seen)
    if rest or not channels or bins < 2:
        raise BundleError(
            f"{first}fc1.weight takes {inputs} numbers of {seen} bins: they are no whole number of channels"
        )
    n_fft = 2 * (bins - 1)
    stft = settings.transform(
        n_fft=n_fft,
        hop=settings.number("audio", "hop_length", n_fft // 4),
        sample_rate=settings.number("audio", "sample_rate", USUAL_RATE),
        scale=FAMILY.stft.scale,
        padding="reflect",
        seen=(0, bins),
    )
    places = {start: f"nets.{place}." for place, start in enumerate(starts)}

    def rename(name: str) -> str:
        start = name[: name.find(".") + 1] if first else ""
        return places.get(start, start) + name[len(start) :]

    return Reading(
        "open_unmix",
        {
            "hidden": hidden,
            "layers": numbered(shapes, re.escape(first) + r"lstm\.weight_ih_l(\d+)$"),
            "bins": seen,
        },
        stft,
        settings.chunks(stft, FAMILY.chunk.frames),
        channels,
        len(starts),
        rename=rename,
        constants={
            TARGET + r"(?:stft|transform\.0)\.window": hann(n_fft),
            TARGET + "sample_rate": np.array(stft.sample_rate, np.float64),
        },
        default_stems=tuple(start.removesuffix(".") for start in starts) if first else None,
    )


def _order(starts: list[str], settings: Settings) -> Callable[[str], int]:
    """The places of targets: as options or the configuration name them, where these are the same names."""
    said = settings.stems or settings.of("training", "instruments")
    wanted = [f"{name}." for name in said] if isinstance(said, Sequence) else []
    return (wanted if set(wanted) == set(starts) else starts).index


OPEN_UNMIX = Kind(
    "Open-Unmix",
    tuple(
        TARGET + mark for mark in (r"input_mean$", r"output_scale$", r"fc1\.weight$", r"lstm\.weight_ih_l0$")
    ),
    read_open_unmix,
)
