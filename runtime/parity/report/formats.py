"""Verdicts for people and for machines: text, Markdown, JUnit XML."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tfswa.runtime.errors import UsageError
from tfswa.runtime.escape import markdown_text, shown
from tfswa.runtime.failures import Failure
from tfswa.runtime.files.atomic import writing
from tfswa.runtime.gates import Gates
from tfswa.runtime.model.spec import NEXT
from tfswa.runtime.parity.certificate import Certificate, GraphFigures, QualityFigures, SignalFigures
from tfswa.runtime.parity.judge import Breach
from tfswa.runtime.table import decimals, markdown_table, text_table

Judged = Sequence[tuple[Certificate, Sequence[Breach]]]

COLUMNS = ("song", "stem", "SNR dB", "SI-SDR dB", "worst second", "reference SDR dB", "SDR dB", "drift dB")
OVERVIEW = ("backend", "precision", "SNR dB", "drift dB", "graph SNR dB", "largest error", "axes")
LONGEST = 20  # breaches that are listed; a broken artifact has hundreds


def text(judged: Judged, gates: Gates) -> list[str]:
    """For a terminal."""
    lines: list[str] = []
    for certificate, breaches in judged:
        lines += [
            f"{certificate.name} on {certificate.device} against {certificate.reference}",
            text_table(COLUMNS, list(song_rows(certificate))),
            *_rest(certificate),
            *_verdict(certificate, breaches, gates),
            "",
        ]
    return lines


def markdown(model: str, judged: Judged, gates: Gates) -> str:
    """For a pull request."""
    first = judged[0][0]
    versions = ", ".join(f"{name} {number}" for name, number in sorted(first.versions.items()))
    lines = [
        f"# Parity of {markdown_text(model)}",
        "",
        f"{first.cpu}, {first.date}, {versions}; against {first.reference}, gates of {gates.source}",
        "",
        *markdown_table((*OVERVIEW, "verdict"), [(*_rounded(overview(c)), _word(b)) for c, b in judged]),
    ]
    for certificate, breaches in judged:
        lines += [
            "",
            f"## {certificate.name}",
            "",
            *markdown_table(COLUMNS, [_rounded(row) for row in song_rows(certificate)]),
        ]
        lines += ["", *(f"- {markdown_text(line)}" for line in _rest(certificate))]
        lines += [f"- {markdown_text(line)}" for line in _verdict(certificate, breaches, gates)]
    return "\n".join(lines) + "\n"


def junit(model: str, judged: Judged, failures: Sequence[Failure] = ()) -> str:
    """JUnit XML: a suite for each artifact, a case for each stem of each item, and one for each axis.

    What could not be measured, a song or an artifact, is a case with an error in a suite of its own.
    """
    suites = ElementTree.Element("testsuites", name=f"tfx parity {model}")
    for certificate, breaches in judged:
        cases: dict[str, list[Breach]] = {}
        for row in certificate.signal:
            cases[f"{row.item}: {row.stem}"] = []
        for axis in certificate.axes:
            cases[f"{axis.axis} {axis.value}"] = []
        for breach in breaches:
            name = f"{breach.item}: {breach.stem}" if breach.stem else breach.item
            cases.setdefault(name, []).append(breach)
        failed = sum(bool(found) for found in cases.values())
        suite = ElementTree.SubElement(
            suites, "testsuite", name=certificate.name, tests=str(len(cases)), failures=str(failed)
        )
        for name, found in cases.items():
            case = ElementTree.SubElement(suite, "testcase", classname=certificate.name, name=name)
            if found:
                message = "; ".join(map(str, found))
                ElementTree.SubElement(case, "failure", message=message).text = message
    if failures:
        count = str(len(failures))
        suite = ElementTree.SubElement(suites, "testsuite", name="not measured", tests=count, errors=count)
    for failure in failures:
        case = ElementTree.SubElement(suite, "testcase", classname="not measured", name=failure.item)
        ElementTree.SubElement(case, "error", message=failure.told).text = failure.told
    for element in suites.iter():  # XML has no control characters, and no surrogates
        element.attrib = {name: shown(value) for name, value in element.attrib.items()}
        element.text = None if element.text is None else shown(element.text)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def write(path: Path | None, content: str, *, force: bool) -> None:
    """Write a file whole or not at all; None writes nothing.

    Raises:
        UsageError: it cannot be written.
        OutputExists: it is there, and ``force`` is false.
    """
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path, named=True, force=force) as stream:
            stream.write(content.encode())
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}): choose another name") from error


def song_rows(certificate: Certificate) -> Iterator[Sequence[Any]]:
    """A row for each stem of each real song."""
    quality = {(row.item, row.stem): row for row in certificate.quality}
    for row in certificate.signal:
        if row.kind != "real":
            continue
        found = quality.get((row.item, row.stem))
        snr = "identical" if row.identical else row.snr_db
        before = found.reference["sdr_u_db"] if found else None
        after = found.artifact["sdr_u_db"] if found else None
        drift = None if found is None else _drift(found.drift_db)
        yield row.item, row.stem, snr, row.si_sdr_db, _worst(row), before, after, drift


def _rounded(row: Sequence[Any]) -> list[Any]:
    return [round(value, 2) if isinstance(value, float) else value for value in row]


def _worst(row: SignalFigures) -> str | None:
    if row.worst_second is None:
        return None
    return f"{row.by_second_db[row.worst_second]:.1f} dB at {row.worst_second} s"


def overview(certificate: Certificate) -> Sequence[Any]:
    """One row for an artifact, under ``OVERVIEW``."""
    errors = [
        row.peak_error for row in certificate.signal if row.kind != "real" and row.peak_error is not None
    ]
    largest = f"{max(errors):.1e}" if errors else None
    equal = sum(axis.identical for axis in certificate.axes)
    axes = f"{equal} of {len(certificate.axes)} identical" if certificate.axes else None
    return (
        certificate.backend,
        certificate.precision,
        _least([row for row in certificate.signal if row.kind == "real"]),
        _drift(certificate.worst_drift_db),
        _least(certificate.graph),
        largest,
        axes,
    )


def _drift(value: float | None) -> str | None:
    """Four decimals, and no minus before nothing."""
    return None if value is None else decimals(value, 4)


def _least(rows: Sequence[Any]) -> float | str | None:
    """The lowest SNR; None where none is defined, which is no likeness: a stem that had to be silent, NaN."""
    known = [row.snr_db for row in rows if row.snr_db is not None]
    return "identical" if rows and all(row.identical for row in rows) else min(known, default=None)


def _rest(certificate: Certificate) -> Iterator[str]:
    """What no table of songs has."""
    for part, row in graph_parts(certificate):
        relative = "undefined" if row.relative_error is None else f"{row.relative_error:.1e}"
        figures = "identical" if row.identical else f"{decibels(row.snr_db)} SNR, relative error {relative}"
        yield f"graph alone, {part}: {figures}"
    for song in certificate.quality:
        if song.reference["sdr_c_db"] is not None:
            yield f"BSSEval, {song.stem} of {song.item}: {_bsseval(song)}"
    difficult = [row for row in certificate.signal if row.kind != "real" and row.peak_error is not None]
    if difficult:
        worst = max(difficult, key=lambda row: row.peak_error or 0.0)
        count = len({row.item for row in difficult})
        error = f"largest error {worst.peak_error:.1e}, {worst.stem} on {worst.item}"
        yield f"{count} signals made to be difficult: {error}"
    ways = [
        f"{axis.axis} {axis.value} {'identical' if axis.identical else decibels(axis.snr_db)}"
        for axis in certificate.axes
    ]
    if ways:
        yield f"against itself: {', '.join(ways)}"
    for stem, value in certificate.reference_rounding_db.items():
        yield f"the float32 reference itself, {stem}: {decibels(value)} SNR"


def graph_parts(certificate: Certificate) -> Iterator[tuple[str, GraphFigures]]:
    """What the network gives, by name; of its state, which may be many tensors, the worst one."""
    state = [row for row in certificate.graph if row.stem.startswith(NEXT)]
    for row in certificate.graph:
        if row not in state:
            yield row.stem, row
    if state:
        worst = min(state, key=_rank)
        name = worst.stem if len(state) == 1 else f"the worst of {len(state)} states, {worst.stem}"
        yield name, worst


def _rank(row: GraphFigures) -> float:
    if row.identical:
        return math.inf
    return -math.inf if row.snr_db is None else row.snr_db


def _bsseval(song: QualityFigures) -> str:
    """Medians over windows of a second, of the reference and of the artifact."""
    figures = []
    for measure in ("sdr", "sir", "sar"):
        before, after = song.reference[f"{measure}_c_db"], song.artifact[f"{measure}_c_db"]
        if before is None and after is None:
            figures.append(f"{measure.upper()} not defined")
        else:
            figures.append(f"{measure.upper()} {decibels(before)} -> {decibels(after)}")
    return ", ".join(figures)


def _verdict(certificate: Certificate, breaches: Sequence[Breach], gates: Gates) -> Iterator[str]:
    if not breaches:
        yield f"passed: {limits(certificate, gates)}"
    for breach in breaches[:LONGEST]:
        yield f"FAILED {breach}"
    if len(breaches) > LONGEST:
        yield f"FAILED {len(breaches) - LONGEST} more"


def limits(certificate: Certificate, gates: Gates) -> str:
    """What its gate asks, in a few words."""
    gate = gates.of(certificate.precision)
    return f"SNR >= {gate.snr_db:g} dB, |drift| <= {gate.drift_db:g} dB, nothing NaN or Inf"


def _word(breaches: Sequence[Breach]) -> str:
    return "FAILED" if breaches else "passed"


def decibels(value: float | None) -> str:
    """A figure with its unit."""
    return "undefined" if value is None else f"{value:.1f} dB"
