"""Curves of what localizing and seams found, as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfswa.runtime.parity.localize import Located
from tfswa.runtime.parity.seams import Seams
from tfswa.runtime.plots.pictures import Panel, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_located(found: Located, name: str) -> Figure:
    """SNR and loss of each module of a model of that name.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    places = [float(index) for index in range(len(found.steps))]
    marks = {}
    if found.culprit is not None:
        marks[found.culprit.module] = float(found.steps.index(found.culprit))
    top = found.ceiling_db + 40  # where equal values are drawn; 0 is for NaN and Inf
    snr_db = [min(max(step.snr_db, 0.0), top) for step in found.steps]
    loss_db = [min(step.loss_db, found.ceiling_db) for step in found.steps]
    snr = Panel(f"SNR / dB, {top:g} where equal", {"modules": snr_db}, level=found.ceiling_db)
    loss = Panel("loss / dB", {"modules": loss_db}, level=found.threshold_db)
    title = f"{name}: {found.artifact} against eager float32"
    return panels(places, [snr, loss], title=title, label="module, in the order of the graph", marks=marks)


def draw_seams(found: Seams, name: str) -> Figure:
    """SNR and loss of each stem of a model of that name, by distance from the edge.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    marks = {"present context": float(found.spec.chunk.context)}
    if found.context is not None:
        marks["context asked for"] = float(found.context)
    drawn = [
        Panel("SNR against the long pass / dB", {curve.stem: curve.snr_db for curve in found.curves}),
        Panel(
            "loss of SDR / dB",
            {curve.stem: curve.loss_db for curve in found.curves},
            level=max(curve.middle_loss_db for curve in found.curves) + found.limit_db,
        ),
    ]
    places = [float(d) for d in range(len(found.curves[0].snr_db))]
    return panels(
        places, drawn, title=f"{name}: seams", label="distance from the chunk's edge / frames", marks=marks
    )
