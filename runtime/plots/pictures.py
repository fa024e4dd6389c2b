"""Pictures: curves, bars, attention maps; spectrograms are in ``spectrograms.py``.

Matplotlib's Figure is used without pyplot: no window system, no global state, nothing to close. Nothing
here imports torch.
"""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import BackendUnavailable
from tfswa.runtime.escape import plot_text
from tfswa.runtime.files.atomic import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100
SPREAD = (1.25, 16.0)  # of an attention map's colors around the uniform weight, at least and at most
COARSE, FINE = (0.0625, 0.125, 0.25, 0.5, 1, 2, 4, 8, 16), (0.5, 0.65, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2)


@dataclass(frozen=True)
class Scale:
    """What the places of an attention map stand for.

    Attributes:
        label: quantity and unit, ``time / s``.
        start: value at the edge before the first place.
        end: value at the edge after the last one.
        tick: between two ticks; 0 leaves it to matplotlib.
    """

    label: str
    start: float
    end: float
    tick: float = 0.0


def require_matplotlib(otherwise: str = "") -> None:
    """See that pictures can be made, before hours are spent on what they should show.

    Args:
        otherwise: what to do without them, for the error.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    try:
        empty(1.0, 1.0)
    except BackendUnavailable as error:
        raise BackendUnavailable(f"{error}{otherwise and f', or {otherwise}'}") from error


def loss_curves(
    train: Mapping[str, Sequence[float]],
    validation: Mapping[str, Sequence[float]],
    *,
    losses: Collection[str] = ("loss",),
) -> Figure:
    """Draw losses, validation scores and the learning rate over the steps, one below the other.

    Args:
        train: columns of log.csv by name, with ``step``; of the others ``losses`` and the learning rate,
            ``lr``, are drawn.
        validation: columns of validation.csv, with ``step``; all others are scores.
        losses: names of columns of ``train``.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    panels = [
        ("training loss", train, [name for name in train if name in losses]),
        ("validation score", validation, [name for name in validation if name != "step"]),
        ("learning rate", train, [name for name in train if name == "lr"]),
    ]
    panels = [panel for panel in panels if panel[2]]
    figure = empty(9.0, 0.8 + 2.8 * max(1, len(panels)))
    axes = figure.subplots(max(1, len(panels)), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (label, table, names) in zip(axes, panels, strict=False):
        for name in names:
            # A dot a row, or a run of one row would show nothing.
            dots = "." if len(table[name]) <= 60 else ""
            axis.plot(table["step"], table[name], label=plot_text(name), marker=dots, linewidth=1)
        positive = all(value > 0 for name in names for value in table[name] if math.isfinite(value))
        axis.set(ylabel=label, yscale="log" if positive and label == "training loss" else "linear")
        axis.grid(alpha=0.3)
        if names != ["lr"]:
            axis.legend(fontsize="small")
    axes[-1].set_xlabel("optimizer step")
    return figure


def attention_grid(
    maps: Mapping[str, NDArray[Any]], *, title: str = "", scale: Scale | None = None
) -> Figure:
    """Draw attention maps side by side: white is the uniform weight, red is more, blue is less.

    Args:
        maps: by name, at least one, ``[L, S]``, rows sum to 1.
        title: above all of them.
        scale: of both axes of every map; without it maps show no more than the number of their places.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    figure = empty(*_size(len(maps)))
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MultipleLocator

    shares = {name: np.maximum(found * found.shape[1], 1e-6) for name, found in maps.items()}
    spread = _spread(shares.values())
    norm = LogNorm(1 / spread, spread)
    columns = _columns(len(maps))
    axes = figure.subplots(math.ceil(len(maps) / columns), columns, squeeze=False)
    for axis, (name, share) in zip(axes.flat, shares.items(), strict=False):
        edges = (scale.start, scale.end) if scale else (0, share.shape[1])
        rows = edges if scale else (0, share.shape[0])
        image = axis.imshow(
            share, origin="lower", extent=(*edges, *rows), aspect="auto", norm=norm, cmap="RdBu_r"
        )
        size = "" if scale else f"\n{share.shape[0]} x {share.shape[1]}"
        axis.set_title(plot_text(name) + size, fontsize="small")
        axis.tick_params(labelsize="x-small")
        if scale is None:
            axis.set(xticks=[], yticks=[])
        elif scale.tick:
            axis.xaxis.set_major_locator(MultipleLocator(scale.tick))
            axis.yaxis.set_major_locator(MultipleLocator(scale.tick))
    for axis in axes.flat[len(maps) :]:
        axis.set_visible(False)
    unit = scale.label if scale else "place"
    figure.supxlabel(f"attended to: {plot_text(unit)}", fontsize="medium")
    figure.supylabel(f"attending: {plot_text(unit)}", fontsize="medium")
    figure.suptitle(plot_text(title))
    ticks = [tick for tick in (FINE if spread < 2 else COARSE) if 1 / spread <= tick <= spread]
    bar = figure.colorbar(
        image, ax=axes, label="weight / uniform weight", extend="both", aspect=40, extendfrac=0.02
    )
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks], minor=False)
    bar.minorticks_off()
    return figure


def to_pixels(figure: Figure) -> NDArray[np.uint8]:
    """Render a figure: ``[height, width, 3]``, 0 to 255."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def bars(values: Mapping[str, float], title: str) -> Figure:
    """Draw one horizontal bar a value, the first on top, each with its number.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    figure = empty(7.0, 0.8 + 0.4 * len(values))
    axis = figure.subplots()
    drawn = axis.barh([plot_text(name) for name in values], list(values.values()), color="tab:blue")
    axis.bar_label(drawn, fmt="%.3g", padding=3)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_title(plot_text(title), fontsize="medium")
    return figure


@dataclass(frozen=True)
class Panel:
    """Curves over one axis.

    Attributes:
        label: quantity and unit of the values.
        curves: values by name; what is not finite leaves a gap.
        level: a line across, or None.
    """

    label: str
    curves: Mapping[str, Sequence[float]]
    level: float | None = None


def panels(
    x: Sequence[float],
    drawn: Sequence[Panel],
    *,
    title: str,
    label: str,
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """Draw panels of curves, one below the other, over one axis.

    Args:
        x: places of all values.
        drawn: at least one panel.
        title: above all.
        label: quantity and unit of ``x``.
        marks: places of ``x`` to be marked in every panel, by what they are called.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    figure = empty(9.0, 0.8 + 2.8 * len(drawn))
    axes = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
    for axis, panel in zip(axes, drawn, strict=True):
        for name, values in panel.curves.items():
            finite = [value if math.isfinite(value) else math.nan for value in values]
            axis.plot(x, finite, label=plot_text(name), marker="." if len(x) <= 200 else "", linewidth=1)
        if panel.level is not None:
            axis.axhline(panel.level, color="gray", linewidth=1, linestyle=":")
        for index, (name, place) in enumerate((marks or {}).items()):
            axis.axvline(place, color=f"C{index + 3}", linewidth=1, linestyle="--", label=plot_text(name))
        axis.set_ylabel(plot_text(panel.label))
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    axes[-1].set_xlabel(plot_text(label))
    figure.suptitle(plot_text(title))
    return figure


def save_png(figure: Figure, path: Path, *, named: bool = False, force: bool = True) -> None:
    """Write a figure as PNG, in one step; ``named`` and ``force`` as for ``writing``.

    Raises:
        OSError: the file cannot be written; an older one is as it was.
        OutputExists: it is there, and ``force`` is false.
    """
    coded = io.BytesIO()
    figure.savefig(coded, format="png")
    with writing(path, named=named, force=force) as stream:
        stream.write(coded.getvalue())


def to_svg(figure: Figure) -> bytes:
    """A figure as SVG whose text stays text; the same bytes for the same figure."""
    from matplotlib import rc_context

    coded = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "tfx"}):
        figure.savefig(coded, format="svg", metadata={"Date": None})
    return coded.getvalue()


def small_png(figure: Figure) -> bytes:
    """A figure as PNG of 256 colors, a third of the size: for many pictures on one page."""
    from PIL import Image  # matplotlib brings it

    coded = io.BytesIO()
    Image.fromarray(to_pixels(figure)).quantize(256, dither=Image.Dither.NONE).save(
        coded, format="PNG", optimize=True
    )
    return coded.getvalue()


def empty(width: float, height: float) -> Figure:
    """Make a figure of a size in inches.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendUnavailable("pictures need matplotlib: pip install 'tfswa[plots]'") from error
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _columns(count: int) -> int:
    return min(count, max(1, math.ceil(math.sqrt(count))))


def _size(count: int) -> tuple[float, float]:
    """Width and height in inches of a grid of ``count`` maps."""
    side = 5.5 if count == 1 else 2.4
    columns = _columns(count)
    return side * columns + 1.6, side * math.ceil(count / columns) + 0.9


def _spread(shares: Iterable[NDArray[Any]]) -> float:
    """Largest ratio to the uniform weight that colors tell apart; outliers aside."""
    ratios = [np.quantile(np.abs(np.log(share)), 0.995) for share in shares]
    return float(np.clip(np.exp(max(ratios)), *SPREAD))
