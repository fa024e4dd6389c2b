"""Plain tables for people: aligned columns, no wider than their content, in a pipe as in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from tfswa.runtime.escape import markdown_text, shown


def decimals(value: float, digits: int) -> str:
    """A number with so many decimals; what they round to nothing has no minus."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def text_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str | float | None]],
    digits: int | Sequence[int] = 2,
) -> str:
    """Lay out a table: text to the left, numbers to the right, None as a dash.

    Args:
        columns: their titles.
        rows: one value a column.
        digits: decimals, of all columns or of each.
    """
    from rich.cells import cell_len  # in cells of a terminal: a kanji takes two, an accent none

    each = [digits] * len(columns) if isinstance(digits, int) else digits
    cells = [[_cell(value, places) for value, places in zip(row, each, strict=True)] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    numeric = [all(not isinstance(row[i], str) for row in rows) for i in range(len(columns))]

    def line(texts: Sequence[str]) -> str:
        aligned = zip(texts, widths, numeric, strict=True)
        padded = ((text, " " * (width - cell_len(text)), right) for text, width, right in aligned)
        return "  ".join(pad + text if right else text + pad for text, pad, right in padded).rstrip()

    return "\n".join([line(columns), line(["-" * width for width in widths]), *map(line, cells)])


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
