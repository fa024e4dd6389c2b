"""A picture of a search: what each group of layers costs in decibels, and what plans gain in time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfswa.calibration.calibrate import Planned
from tfswa.calibration.simulate import FULL, HALF, INT8
from tfswa.runtime.escape import plot_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

ROWS = 40  # groups that are shown: those that lose most
FLOOR_DB = 1e-6  # of a drift on a logarithmic scale


def draw(planned: Planned, budget_db: float, name: str) -> Figure:
    """Drift of each group in 8 bits alone, and cost against drift of the plans that were measured.

    Args:
        planned: what a search found.
        budget_db: what it was allowed.
        name: of the model; of a path the last part is shown.
    """
    from matplotlib.figure import Figure

    found = planned.found
    drift = {group: found.alone[group][INT8].worst_drift_db for group in planned.groups}
    shown = sorted(drift, key=lambda group: drift[group], reverse=True)[:ROWS]
    figure = Figure(figsize=(13, max(4.0, 1.2 + 0.2 * len(shown))), layout="constrained")
    bars, curve = figure.subplots(1, 2)
    chosen = set(found.best.int8)
    bars.barh(
        range(len(shown)),
        [max(drift[group], FLOOR_DB) for group in shown],
        color=["tab:blue" if group in chosen else "tab:gray" for group in shown],
    )
    bars.set_yticks(range(len(shown)), [plot_text(group) for group in shown], fontsize=7)
    bars.invert_yaxis()
    bars.set_xscale("log")
    bars.axvline(budget_db, color="tab:red", linestyle="--", label=f"budget {budget_db:g} dB")
    bars.set_xlabel("drift of the worst stem and its doubt, this group in int8 alone / dB")
    bars.set_title(
        f"{plot_text(Path(name).name)}: groups that drift most (blue: in int8 by the plan)", fontsize=9
    )
    bars.legend(fontsize=8)
    points = sorted(found.points, key=lambda point: point.cost)
    curve.plot(
        [point.cost for point in points],
        [max(point.loss.worst_drift_db, FLOOR_DB) for point in points],
        "o-",
        color="tab:blue",
    )
    labels = []
    for point in points:
        place = (point.cost, max(point.loss.worst_drift_db, FLOOR_DB))
        text = f"{len(point.int8)} int8" + ("" if point.time is None else f", time {point.time:.2f}")
        labels.append(_label(curve, text, place))
    best = (found.best.cost, max(found.best.loss.worst_drift_db, FLOOR_DB))
    curve.plot(*best, "*", markersize=14, color="tab:orange", label="chosen")
    for kind, label in ((FULL, "all fp32"), (HALF, "all half"), (INT8, "all int8")):
        whole = sum(costs[kind] for costs in planned.costs.values())
        curve.axvline(whole, color="tab:gray", linestyle=":")
        labels.append(_label(curve, label, (whole, 0.5), rotation=90, xycoords=curve.get_xaxis_transform()))
    curve.axhline(budget_db, color="tab:red", linestyle="--")
    curve.set_yscale("log")
    curve.set_xlabel(f"cost of a chunk's layers / {planned.unit}")
    curve.set_ylabel("drift of the worst stem and its doubt / dB")
    curve.set_title("plans that were measured", fontsize=9)
    curve.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _apart(figure, labels)
    return figure


def _label(axes: Axes, text: str, place: tuple[float, float], **more: Any) -> Annotation:
    label = axes.annotate(
        text,
        place,
        fontsize=7,
        va="bottom",
        xytext=(3, 3),
        textcoords="offset points",
        **more,
    )
    label.set_in_layout(False)  # so that moving one moves nothing else
    return label


def _apart(figure: Figure, labels: Sequence[Annotation]) -> None:
    """Raise each label until it lies over none of those before it."""
    figure.draw_without_rendering()
    placed: list[Bbox] = []
    for label in labels:
        box = label.get_window_extent()
        while below := [other for other in placed if box.overlaps(other)]:
            rise = max(other.y1 for other in below) - box.y0 + figure.dpi / 72  # a point between them
            right, up = label.xyann
            label.xyann = (right, up + rise * 72 / figure.dpi)
            box = label.get_window_extent()
        placed.append(box)
