"""The tables of the report of parity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tfswa.runtime.gates import Gates
from tfswa.runtime.parity.judge import Breach
from tfswa.runtime.parity.report.formats import (
    LONGEST,
    OVERVIEW,
    Judged,
    decibels,
    limits,
    overview,
    song_rows,
)
from tfswa.runtime.parity.report.markup import Markup, element, join

STEM_COLUMNS = (
    "stem",
    "backend",
    "verdict",
    "SNR dB",
    "SI-SDR dB",
    "worst second",
    "reference SDR dB",
    "SDR dB",
    "drift dB",
    "x real time",
)


def verdicts(judged: Judged, names: Sequence[str], gates: Gates, missing: Mapping[str, str]) -> Markup:
    """Each artifact with its worst figures, and what it failed by."""
    rows = [
        (name, _count(breaches), *(_number(cell, 2) for cell in overview(certificate)[2:]))
        for name, (certificate, breaches) in zip(names, judged, strict=True)
    ]
    parts = [
        _table(
            "Each artifact: its worst stem, drift and error, and its speed",
            ("backend", "verdict", *OVERVIEW[2:]),
            rows,
        )
    ]
    for name, (certificate, breaches) in zip(names, judged, strict=True):
        if not breaches:
            asked = limits(certificate, gates)
            parts.append(element("p", element("strong", "passed"), f" {name}: {asked}"))
            continue
        listed = [element("li", str(breach)) for breach in breaches[:LONGEST]]
        if len(breaches) > LONGEST:
            listed.append(element("li", f"{len(breaches) - LONGEST} more"))
        parts.append(element("p", element("strong", "FAILED", class_="failed"), f" {name}:"))
        parts.append(element("ul", *listed))
    parts += [element("p", f"not measured, {name}: {why}") for name, why in missing.items()]
    return join(*parts)


def stems(judged: Judged, names: Sequence[str]) -> Markup:
    """The table stem x backend, a group for each song."""
    groups: dict[str, dict[str, list[tuple[object, ...]]]] = {}
    for name, (certificate, breaches) in zip(names, judged, strict=True):
        speed = certificate.x_realtime
        for item, stem, snr, si_sdr, worst, before, after, drift in song_rows(certificate):
            own = [breach for breach in breaches if (breach.item, breach.stem) == (item, stem)]
            si_sdr = snr if snr == "identical" else si_sdr  # rounding alone would have a figure
            figures = (_number(snr, 1), _number(si_sdr, 1), worst, _number(before, 2), _number(after, 2))
            row = (stem, name, _which_figures(own), *figures, _number(drift, 4), _number(speed, 2))
            groups.setdefault(item, {}).setdefault(stem, []).append(row)
    if not groups:
        return element("p", "No song was separated to the end: see the verdict.")
    bodies = {item: [row for rows in stems.values() for row in rows] for item, stems in groups.items()}
    return join(
        element("p", "Each against the reference's output; both against the true stem, where it is known."),
        _table("Every stem of every song by backend", STEM_COLUMNS, bodies),
    )


def difficult(judged: Judged, names: Sequence[str]) -> Markup:
    """Largest error by signal and backend."""
    cells: dict[str, dict[str, tuple[float, str]]] = {}
    failed: dict[tuple[str, str], bool] = {}
    for name, (certificate, breaches) in zip(names, judged, strict=True):
        over = {breach.item for breach in breaches if breach.level in ("signal", "finite")}
        for row in certificate.signal:
            if row.kind == "real" or row.peak_error is None:
                continue
            known = cells.setdefault(row.item, {})
            known[name] = max(known.get(name, (-1.0, "")), (row.peak_error, row.stem))
            failed[row.item, name] = row.item in over
    if not cells:
        return element("p", "None was measured (--quick).")

    def cell(item: str, name: str) -> str | None:
        if name not in cells[item]:
            return None
        error, stem = cells[item][name]
        return f"{'FAILED ' if failed[item, name] else ''}{error:.1e} ({stem})" if error else "0"

    rows = [(item, *(cell(item, name) for name in names)) for item in cells]
    return _table("Largest difference of one sample, full scale 1, and its stem", ("signal", *names), rows)


def axes(judged: Judged, names: Sequence[str]) -> Markup:
    """Each artifact against itself, run in other ways."""
    cells: dict[str, dict[str, str]] = {}
    for name, (certificate, _) in zip(names, judged, strict=True):
        for axis in certificate.axes:
            same = "identical" if axis.identical else decibels(axis.snr_db)
            cells.setdefault(_way(axis.axis, axis.value), {})[name] = same
    if not cells:
        return element("p", "None was measured (--quick).")
    rows = [(way, *(found.get(name) for name in names)) for way, found in cells.items()]
    return _table("The artifact run in another way, against how it was run: SNR", ("run", *names), rows)


def _way(axis: str, value: int) -> str:
    ways = {"again": "again", "batch": f"{value} chunks at once", "push": f"{value} samples at a time"}
    return ways.get(axis, f"{axis} {value}")


def graph(judged: Judged, names: Sequence[str]) -> Markup:
    """The network alone."""
    rows = [
        (row.stem, name, "identical" if row.identical else row.snr_db and f"{row.snr_db:.1f}", error)
        for name, (certificate, _) in zip(names, judged, strict=True)
        for row in certificate.graph
        for error in [None if row.relative_error is None else f"{row.relative_error:.1e}"]
    ]
    if not rows:
        return element("p", "Not measured.")
    caption = "The same planes through the network of both: no STFT, no overlap-add"
    return _table(caption, ("stem", "backend", "SNR dB", "relative error"), rows)


def _table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]] | Mapping[str, Sequence[Sequence[object]]],
) -> Markup:
    """A table that scrolls by itself; rows by name are groups under that name."""
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in columns)))
    if isinstance(rows, Mapping):
        bodies = [
            element(
                "tbody",
                element("tr", element("th", name, scope="rowgroup", colspan=len(columns), class_="group")),
                *map(_row, group),
            )
            for name, group in rows.items()
        ]
    else:
        bodies = [element("tbody", *map(_row, rows))]
    table = element("table", element("caption", caption), head, *bodies)
    return element("div", table, class_="scroll", role="region", aria_label=caption, tabindex=0)


def _row(cells: Sequence[object]) -> Markup:
    first, *others = cells
    found = [element("th", first, scope="row")]
    for cell in others:
        text = "-" if cell is None else str(cell)
        failed = "failed" if text.startswith("FAILED") else None
        found.append(element("td", text, class_=failed))
    return element("tr", *found)


def _count(breaches: Sequence[Breach]) -> str:
    return f"FAILED: {len(breaches)} figures" if breaches else "passed"


def _which_figures(breaches: Sequence[Breach]) -> str:
    figures = dict.fromkeys(breach.figure.removesuffix(" in dB") for breach in breaches)
    return f"FAILED: {', '.join(figures)}" if figures else "passed"


def _number(value: object, digits: int) -> object:
    """Adding 0 makes -0 that is rounded away positive."""
    return f"{round(value, digits) + 0.0:.{digits}f}" if isinstance(value, int | float) else value
