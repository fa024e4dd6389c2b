"""Error over time: SNR by second as SVG, a line for each run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tfswa.runtime.escape import plot_text
from tfswa.runtime.plots import pictures

STEPS = 2_000  # of a line, at most
DASHES = ("-", "--", ":")  # with ten colors thirty lines that differ


def snr_chart(lines: Mapping[str, Sequence[float | None]], limits: Mapping[str, float]) -> bytes | None:
    """Draw SNR by second.

    Args:
        lines: dB of each second, by run; None where it is not defined, which leaves a gap.
        limits: gates to draw, in dB, by name.

    Returns:
        SVG; None where no line has a figure.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    if all(value is None for line in lines.values() for value in line):
        return None
    group = math.ceil(max(map(len, lines.values())) / STEPS)
    axis = (figure := pictures.empty(9.0, 3.2)).subplots()
    for index, (name, line) in enumerate(lines.items()):
        levels = thin(line, group)
        edges = [min(at * group, len(line)) for at in range(len(levels) + 1)]
        empty = all(level is None for level in levels)
        label = plot_text(name) + " (no line: identical, or not defined)" * empty
        axis.stairs(
            [math.nan if level is None else level for level in levels],
            edges,
            baseline=None,
            color=f"C{index % 10}",
            linestyle=DASHES[index % len(DASHES)],
            label=label,
        )
    for name, limit in limits.items():
        label = f"{plot_text(name)}, {limit:g} dB"
        axis.axhline(limit, color="black", linewidth=1, linestyle=(0, (1, 3)), label=label)
    axis.set_xlabel("time / s" + (f", the lowest of every {group} seconds" if group > 1 else ""))
    axis.set_ylabel("SNR / dB")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower left", ncols=3, fontsize="small", frameon=False)
    return pictures.to_svg(figure)


def thin(line: Sequence[float | None], group: int) -> list[float | None]:
    """The lowest of each ``group`` values, so that no fall is lost; None where none is known."""
    groups = (line[at : at + group] for at in range(0, len(line), group))
    return [min((value for value in values if value is not None), default=None) for values in groups]
