"""A picture of an evaluation: for each stem, how a figure spreads over songs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tfswa.runtime.escape import plot_text
from tfswa.runtime.evaluation.scores import Score
from tfswa.runtime.plots import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE, LABEL = "sdr_c_db", "SDR c of each song, dB (median over windows of 1 s)"


def require_boxplot() -> None:
    """See that there is something to draw with.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    pictures.require_matplotlib("--no-plot")


def box_plot(songs: Sequence[Sequence[Score]], title: str, path: Path) -> None:
    """Draw a box for each estimator of each stem, and write a PNG.

    Args:
        songs: scores of each song.
        title: above the picture.
        path: where the picture goes, whatever its ending.
    """
    box_figure(songs, title).savefig(path, format="png", dpi=150)


def box_figure(songs: Sequence[Sequence[Score]], title: str) -> Figure:
    """The picture, not yet written."""
    from matplotlib.figure import Figure  # no pyplot: it would keep the picture, and look for a screen

    scores = [score for song in songs for score in song]
    stems = list(dict.fromkeys(score.stem for score in scores))
    drawn = [
        (estimator, [_values(scores, estimator, stem) for stem in stems])
        for estimator in dict.fromkeys(score.estimator for score in scores)
    ]
    drawn = [(estimator, values) for estimator, values in drawn if any(values)]
    drawing = Figure(figsize=(max(5.0, 1.0 + 1.6 * len(stems)), 4.5), layout="constrained")
    axes = drawing.add_subplot()
    width = 0.8 / max(1, len(drawn))
    for number, (estimator, values) in enumerate(drawn):
        places = [place + (number - (len(drawn) - 1) / 2) * width for place in range(len(stems))]
        color = f"C{number}"
        parts = axes.boxplot(
            values, positions=places, widths=0.85 * width, patch_artist=True, manage_ticks=False
        )
        for box in parts["boxes"]:
            box.set(facecolor=color, alpha=0.6)
        for line in parts["medians"]:
            line.set(color="black")
        for place, one in zip(places, values, strict=True):  # each song: of one song the box has no height
            axes.plot([place] * len(one), one, "o", color=color, markersize=4)
        axes.plot([], [], color=color, linewidth=8, alpha=0.6, label=plot_text(estimator))
    axes.set_xticks(range(len(stems)), [plot_text(stem) for stem in stems])
    axes.set_ylabel(LABEL)
    axes.set_title(plot_text(title))
    axes.grid(axis="y", alpha=0.3)
    if drawn:
        axes.legend()
    return drawing


def _values(scores: Sequence[Score], estimator: str, stem: str) -> list[float]:
    found = [score.figures[FIGURE] for score in scores if (score.estimator, score.stem) == (estimator, stem)]
    return [value for value in found if value is not None]
