"""Error over time as SVG that takes its width and its colors from the page.

::

    labels | plot, stretched to the width of the page
    -------+-----------------------------------------
           | seconds

Only the plot is stretched: text keeps its size, and lines keep their width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from tfswa.runtime.parity.report.markup import Markup, element, join

STEPS = 2_000  # of a line, at most
HEIGHT = 180  # of the plot, in CSS pixels; page.css knows it too
COLORS, DASHES = 6, 5  # classes in page.css: thirty lines that differ
TICKS = 6


def snr_chart(
    title: str, lines: Mapping[str, Sequence[float | None]], limits: Mapping[str, float]
) -> Markup | None:
    """Draw SNR by second, a line for each run.

    Args:
        title: what it shows, for those who do not see it.
        lines: dB of each second, by run; None where it is not defined, which leaves a gap.
        limits: gates to draw, in dB, by name.

    Returns:
        The chart and its legend; None where no line has a figure.
    """
    known = [value for line in lines.values() for value in line if value is not None]
    if not known:
        return None
    size = max(len(line) for line in lines.values())
    group = math.ceil(size / STEPS)
    least, most = min((*known, *limits.values())), max((*known, *limits.values()))
    tick = _nice(most - least, [5, 10, 20, 50, 100, 200])
    low = math.floor(least / tick) * tick
    high = max(math.ceil(most / tick) * tick, low + tick)
    levels = [low + index * tick for index in range(round((high - low) / tick) + 1)]
    step = _nice(size, [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600])
    seconds = range(0, size + 1, step)

    def y(value: float) -> str:
        return f"{HEIGHT * (high - value) / (high - low):.1f}".removesuffix(".0")

    grid = "".join(f"M0 {y(level)}H{size}" for level in levels) + "".join(f"M{x} 0V{HEIGHT}" for x in seconds)
    shapes = [element("path", d=grid, class_="grid")]
    shapes += [element("path", d=f"M0 {y(limit)}H{size}", class_="limit") for limit in limits.values()]
    for index, line in enumerate(lines.values()):
        shapes.append(element("path", d=_path(thin(line, group), group, size, y), class_=_classes(index)))
    lowest = min(known)
    plot = element(
        "svg",
        element("title", f"{title}: SNR by second, lowest {lowest:.1f} dB"),
        *shapes,
        viewBox=f"0 0 {size} {HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        class_="plot",
    )
    labels = [element("text", f"{level:g}", x="100%", dx=-6, y=12 + float(y(level))) for level in levels]
    times = [element("text", f"{x}", x=f"{100 * x / size:.2f}%", y=14) for x in seconds]
    return join(
        element(
            "div",
            element("svg", *labels, class_="levels", aria_hidden="true"),
            plot,
            element("svg", *times, class_="times", aria_hidden="true"),
            class_="chart",
        ),
        _legend(lines, limits, group),
    )


def thin(line: Sequence[float | None], group: int) -> list[float | None]:
    """The lowest of each ``group`` values, so that no fall is lost; None where none is known."""
    groups = (line[at : at + group] for at in range(0, len(line), group))
    return [min((value for value in values if value is not None), default=None) for values in groups]


def _legend(lines: Mapping[str, Sequence[float | None]], limits: Mapping[str, float], group: int) -> Markup:
    def sample(classes: str) -> Markup:
        return element(
            "svg", element("path", d="M0 6H36", class_=classes), class_="sample", aria_hidden="true"
        )

    entries = []
    for index, (name, line) in enumerate(lines.items()):
        empty = all(value is None for value in line)
        note = " (no line: identical, or not defined)" if empty else ""
        entries.append(element("li", sample(_classes(index)), f"{name}{note}"))
    for name, limit in limits.items():
        entries.append(element("li", sample("limit"), f"{name}, {limit:g} dB"))
    unit = "SNR / dB by time / s" + (f", the lowest of every {group} seconds" if group > 1 else "")
    return element("ul", element("li", unit), *entries, class_="legend")


def _path(line: Sequence[float | None], group: int, size: int, y: Callable[[float], str]) -> str:
    """A level for each second, joined where neighbors are known."""
    drawn, before = [], False
    for index, value in enumerate(line):
        if value is not None:
            drawn.append(f"V{y(value)}" if before else f"M{index * group} {y(value)}")
            drawn.append(f"H{min((index + 1) * group, size)}")
        before = value is not None
    return "".join(drawn)


def _classes(index: int) -> str:
    return f"line color-{index % COLORS} dash-{index % DASHES}"


def _nice(span: float, choices: Sequence[int]) -> int:
    """The smallest round step that makes no more than ``TICKS`` of a span."""
    largest = choices[-1] * max(1, math.ceil(span / choices[-1] / TICKS))
    return next((choice for choice in choices if span / choice <= TICKS), largest)
