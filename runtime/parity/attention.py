"""Pictures of where a network's attention looks, in the loudest chunk of a song.

The weights come from the reference (``tfswa.references``), which knows the eager network, so that the runtime
needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import BackendUnavailable, NonFiniteError, OutputExists, UsageError
from tfswa.runtime.files.staging import Staging
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.parity.corpus import loudest_planes
from tfswa.runtime.parity.reference import eager_network
from tfswa.runtime.plots import pictures
from tfswa.runtime.songs.loading import load_song

Audio = NDArray[np.float32]
Maps = Mapping[str, NDArray[np.float32]]

TITLES = {
    "time": "attention along time (TSA)",
    "frequency": "attention along frequency (FSA)",
    "window": "attention within windows (Swin)",
}
PNG_BYTES = 1 << 20  # room for one picture; the largest overview has half of it


@dataclass(frozen=True)
class Picture:
    """One PNG file.

    Attributes:
        path: the file.
        kind: ``time``, ``frequency``, ``window``, or the last word of the modules' names.
        modules: whose maps it shows.
        overview: whether it shows all modules of its kind.
    """

    path: Path
    kind: str
    modules: list[str]
    overview: bool


def draw_attention(model: str, song: Path, folder: Path, *, force: bool = False) -> dict[str, Any]:
    """Draw a picture per attention module, and an overview per kind.

    Args:
        model: a bundle, or a name.
        song: an audio file, a stem file, or a folder of stems.
        folder: where the pictures go; made where it is missing.
        force: replace pictures that are there.

    Returns:
        What was drawn, JSON-ready; keys are documented in docs/json.md.

    Raises:
        BackendUnavailable: torch or matplotlib is missing, or the model is an exported file.
        OutputExists: the folder holds pictures already.
        UsageError: several songs, or a network whose attention cannot be seen.
        AudioError: the song cannot be decoded, or is silent.
        NonFiniteError: attention weights are NaN.
    """
    if not force and folder.is_dir() and any(folder.glob("*.png")):
        raise OutputExists(
            f"{folder} holds pictures already: add --force to replace them, or choose another -o"
        )
    opened = open_model(model)
    if opened.bundle is None:
        raise BackendUnavailable(
            f"{model} is an exported file, attention is seen in the eager network alone: "
            "name the bundle that it came from"
        )
    pictures.require_matplotlib()
    found = load_song(song, opened.spec)
    start, planes = loudest_planes(found.mixture, opened.spec)
    maps = eager_network(opened).attention_maps(planes)
    _check(model, maps)
    planned = plan_pictures(maps, folder)
    start_seconds = start / opened.spec.stft.sample_rate
    _write(planned, maps, opened.spec, start_seconds, model=model, song=song, force=force)
    return {
        "model": model,
        "song": found.name,
        "start_seconds": round(start_seconds, 3),
        "seconds": round(opened.spec.chunk_samples / opened.spec.stft.sample_rate, 3),
        "files": [
            {
                "path": str(picture.path),
                "kind": picture.kind,
                "overview": picture.overview,
                "modules": picture.modules,
            }
            for picture in planned
        ],
    }


def module_kind(module: str) -> str:
    """Kind of attention: the last word of a module's name that is no number."""
    words = [word for word in module.split(".") if not word.isdecimal()]
    return words[-1] if words else module


def plan_pictures(maps: Maps, folder: Path) -> list[Picture]:
    """An overview ``<kind>.png`` per kind, then ``<module>.png`` per module."""
    kinds: dict[str, list[str]] = {}
    for module in maps:
        kinds.setdefault(module_kind(module), []).append(module)
    overviews = [
        Picture(folder / f"{kind}.png", kind, modules, overview=True) for kind, modules in kinds.items()
    ]
    # A network that is one attention module has a kind of the module's name.
    taken = {picture.path.stem for picture in overviews}
    single = [module for module in maps if module not in taken]
    return overviews + [
        Picture(folder / f"{module}.png", module_kind(module), [module], overview=False) for module in single
    ]


def scale_of(
    kind: str, places: int, spec: ModelSpec, start_seconds: float
) -> tuple[str, float, float, float]:
    """What the places of a map stand for: label, value at either edge, distance of ticks (0: any).

    Args:
        kind: of attention.
        places: of the map, at whatever level of the network.
        spec: frames, bins and rate.
        start_seconds: of the chunk's first sample in the song.
    """
    stft = spec.stft
    if kind == "time":
        frame = stft.hop / stft.sample_rate
        first = start_seconds - frame / 2  # frames are centered on their time
        return "time / s", first, first + spec.chunk.frames * frame, 0.0
    if kind == "frequency":
        top = stft.sample_rate / 2000
        if spec.hyper.get("fold_layout") == "contiguous":
            fold = int(spec.hyper["fold"])
            return f"frequency in each of {fold} sub-bands / kHz", 0.0, top / fold, 0.0
        return "frequency / kHz", 0.0, top, 0.0
    side = math.isqrt(places)
    if kind == "window" and side * side == places:
        return f"token of the window, {side} frames of {side} bins", 0.0, float(places), float(side)
    return "place", 0.0, float(places), 0.0


def _write(
    planned: list[Picture],
    maps: Maps,
    spec: ModelSpec,
    start_seconds: float,
    *,
    model: str,
    song: Path,
    force: bool,
) -> None:
    """Draw all pictures; they appear together or not at all."""
    staging = Staging({p.path.name: p.path for p in planned}, force=force, source=song)
    try:
        staging.prepare(PNG_BYTES)
        for picture, partial in zip(planned, staging.partials, strict=True):
            shown = {module: maps[module] for module in picture.modules}
            scale = scale_of(picture.kind, len(shown[picture.modules[0]]), spec, start_seconds)
            title = f"{Path(model).name}: {TITLES.get(picture.kind, picture.kind)}"
            figure = pictures.attention_grid(shown, title=title, scale=pictures.Scale(*scale))
            pictures.save_png(figure, partial)
        staging.publish()
    finally:
        staging.discard()


def _check(model: str, maps: Maps) -> None:
    if not maps:
        raise UsageError(
            f"{model} makes no call of scaled_dot_product_attention, where attention is seen: nothing to draw"
        )
    for module, found in maps.items():
        if not np.isfinite(found).all():
            raise NonFiniteError(f"attention of {model}, {module} is not finite: its weights are damaged")
