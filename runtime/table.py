"""Plain tables for people: aligned columns, as wide as their content, folded on a narrower terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence

from tfswa.runtime.escape import markdown_text, shown


def decimals(value: float, digits: int) -> str:
    """A number with so many decimals; what they round to nothing has no minus."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def text_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str | float | None]],
    digits: int | Sequence[int] = 2,
    width: int | None = None,
) -> str:
    """Lay out a table: text to the left, numbers to the right, None as a dash.

    A table that is too wide is folded: its other columns follow below, beside what says which row it is: the
    first column, and the second where both are text.

    Args:
        columns: their titles.
        rows: one value a column.
        digits: decimals, of all columns or of each.
        width: cells of a line; default: of the terminal that stdout is, elsewhere as many as it takes.
    """
    from rich.cells import cell_len  # in cells of a terminal: a kanji takes two, an accent none

    each = [digits] * len(columns) if isinstance(digits, int) else digits
    cells = [[_cell(value, places) for value, places in zip(row, each, strict=True)] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    numeric = [all(not isinstance(row[i], str) for row in rows) for i in range(len(columns))]

    def line(texts: Sequence[str], part: Sequence[int]) -> str:
        pads = [" " * (widths[i] - cell_len(texts[i])) for i in part]
        aligned = (
            pad + texts[i] if numeric[i] else texts[i] + pad for i, pad in zip(part, pads, strict=True)
        )
        return "  ".join(aligned).rstrip()

    rule = ["-" * each for each in widths]
    keys = 1 if True in numeric[:2] or len(columns) < 2 else 2
    parts = _fold(widths, keys, width or _terminal_width())
    return "\n\n".join("\n".join(line(texts, part) for texts in (columns, rule, *cells)) for part in parts)


def _fold(widths: Sequence[int], keys: int, width: int | None) -> Iterator[Sequence[int]]:
    """Which columns stand beside each other; the first ``keys`` are in every part."""
    part = list(range(keys))
    for column in range(keys, len(widths)):
        needed = sum(widths[i] + 2 for i in part) + widths[column]
        if width is not None and needed > width and len(part) > keys:
            yield part
            part = list(range(keys))
        part.append(column)
    yield part


def _terminal_width() -> int | None:
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    return shutil.get_terminal_size().columns if on_terminal else None


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lay out a table for Markdown, a line each; None as a dash."""
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    return lines + ["| " + " | ".join(_markdown_cell(v) for v in row) + " |" for row in rows]


def _cell(value: str | float | None, digits: int) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return shown(value)
    return str(value) if isinstance(value, int) else decimals(value, digits)


def _markdown_cell(value: object) -> str:
    if value is None:
        return "-"
    return markdown_text(value + 0.0 if isinstance(value, float) else value)  # + 0.0: no minus before nothing
