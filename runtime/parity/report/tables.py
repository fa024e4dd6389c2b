"""The tables of the report of parity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tfswa.runtime.parity.judge import Breach
from tfswa.runtime.parity.report.formats import OVERVIEW, Judged, decibels, graph_parts, overview, song_rows

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


Rows = Sequence[Sequence[object]]


@dataclass(frozen=True)
class Table:
    """What ``page.html`` lays out.

    Attributes:
        caption: what it shows.
        columns: their titles.
        groups: rows by the title of their group, which may be empty; no group where there is no row.
    """

    caption: str
    columns: Sequence[str]
    groups: Mapping[str, Rows]


def verdicts(judged: Judged, names: Sequence[str]) -> Table:
    """Each artifact with its worst figures."""
    rows = [
        (name, _count(breaches), *(_number(cell, 2) for cell in overview(certificate)[2:]))
        for name, (certificate, breaches) in zip(names, judged, strict=True)
    ]
    caption = "Each artifact: its worst stem, drift and error, and its speed"
    return _table(caption, ("backend", "verdict", *OVERVIEW[2:]), rows)


def stems(judged: Judged, names: Sequence[str]) -> Table:
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
    bodies = {item: [row for rows in stems.values() for row in rows] for item, stems in groups.items()}
    return Table("Every stem of every song by backend", STEM_COLUMNS, bodies)


def difficult(judged: Judged, names: Sequence[str]) -> Table:
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

    def cell(item: str, name: str) -> str | None:
        if name not in cells[item]:
            return None
        error, stem = cells[item][name]
        return f"{'FAILED ' if failed[item, name] else ''}{error:.1e} ({stem})" if error else "0"

    rows = [(item, *(cell(item, name) for name in names)) for item in cells]
    return _table("Largest difference of one sample, full scale 1, and its stem", ("signal", *names), rows)


def axes(judged: Judged, names: Sequence[str]) -> Table:
    """Each artifact against itself, run in other ways."""
    cells: dict[str, dict[str, str]] = {}
    for name, (certificate, _) in zip(names, judged, strict=True):
        for axis in certificate.axes:
            same = "identical" if axis.identical else decibels(axis.snr_db)
            cells.setdefault(_way(axis.axis, axis.value), {})[name] = same
    rows = [(way, *(found.get(name) for name in names)) for way, found in cells.items()]
    return _table("The artifact run in another way, against how it was run: SNR", ("run", *names), rows)


def _way(axis: str, value: int) -> str:
    ways = {"again": "again", "batch": f"{value} chunks at once", "push": f"{value} samples at a time"}
    return ways.get(axis, f"{axis} {value}")


def graph(judged: Judged, names: Sequence[str]) -> Table:
    """The network alone."""
    rows = [
        (part, name, "identical" if row.identical else row.snr_db and f"{row.snr_db:.1f}", error)
        for name, (certificate, _) in zip(names, judged, strict=True)
        for part, row in graph_parts(certificate)
        for error in [None if row.relative_error is None else f"{row.relative_error:.1e}"]
    ]
    caption = "The same planes through the network of both: no STFT, no overlap-add"
    return _table(caption, ("stem", "backend", "SNR dB", "relative error"), rows)


def _table(caption: str, columns: Sequence[str], rows: Rows) -> Table:
    return Table(caption, columns, {"": rows} if rows else {})


def _count(breaches: Sequence[Breach]) -> str:
    return f"FAILED: {len(breaches)} figures" if breaches else "passed"


def _which_figures(breaches: Sequence[Breach]) -> str:
    figures = dict.fromkeys(breach.figure.removesuffix(" in dB") for breach in breaches)
    return f"FAILED: {', '.join(figures)}" if figures else "passed"


def _number(value: object, digits: int) -> object:
    """Adding 0 makes -0 that is rounded away positive."""
    return f"{round(value, digits) + 0.0:.{digits}f}" if isinstance(value, int | float) else value
