"""The picture of an evaluation."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed: it draws")

from tfswa.runtime.evaluation.boxplot import FIGURE, box_figure
from tfswa.runtime.evaluation.scores import Score


def test_one_song_is_seen_in_the_color_of_its_estimator() -> None:
    scores = [
        Score(stem, estimator, {FIGURE: value}, {})
        for estimator, value in (("model", 5.0), ("mixture", -1.0))
        for stem in ("vocals", "accompaniment")
    ]
    axes = box_figure([scores], "one song").axes[0]
    points = [line for line in axes.lines if line.get_marker() == "o" and line.get_color() != "black"]
    assert [(line.get_color(), list(line.get_ydata())) for line in points] == [
        ("C0", [5.0]),
        ("C0", [5.0]),
        ("C1", [-1.0]),
        ("C1", [-1.0]),
    ]


@pytest.mark.parametrize("name", ["a $b$ c", r"$\frac", r"\$5"])
def test_a_name_is_no_formula(name: str) -> None:
    figure = box_figure([[Score(name, name, {FIGURE: 1.0}, {})]], name)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    for text in (axes.title, axes.get_xticklabels()[0]):
        assert text.get_text() == name.replace("$", r"\$")  # which is how matplotlib spells a plain $
