"""The picture of a plan can be read."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("onnx", reason="onnx is not installed: a plan is of a graph")
pytest.importorskip("matplotlib", reason="matplotlib is not installed: it draws")

from matplotlib.text import Annotation

from tfswa.calibration.chart import draw
from tfswa.calibration.loss import Loss
from tfswa.calibration.search import Found, Point
from tfswa.calibration.simulate import FULL, HALF, INT8


def test_no_label_lies_over_another() -> None:
    groups = [f"encoder.{number}.blocks.0.time" for number in range(20)]
    losses = [Loss({"vocals": 40.0}, {"vocals": 1e-3 * number}, True) for number in range(1, 21)]
    points = [  # plans that almost coincide
        Point(tuple(groups[:number]), (), 1.0 + 1e-4 * number, losses[8], None if number % 2 else 0.9)
        for number in range(12)
    ]
    planned: Any = SimpleNamespace(
        found=Found(points[3], points, {g: {INT8: loss} for g, loss in zip(groups, losses, strict=True)}),
        costs={group: {FULL: 0.0502, HALF: 0.0501, INT8: 0.05} for group in groups},
        unit="s",
        groups=dict.fromkeys(groups),
    )
    figure = draw(planned, 0.05, "runs/a model.tfx")
    figure.draw_without_rendering()
    labels = [found for found in figure.axes[1].texts if isinstance(found, Annotation)]
    boxes = [label.get_window_extent() for label in labels]
    assert len(boxes) == 12 + 3
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
