"""The report of parity: one HTML page that needs nothing else, no network, no other file.

``page.html`` is its template. Its policy (Content-Security-Policy) lets the page's own style and script run,
by their hashes, and takes pictures and sound from the page itself only. The players hold parts of the songs:
who may not pass those on leaves them out.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from tfswa.runtime.errors import BackendUnavailable
from tfswa.runtime.escape import html_ready
from tfswa.runtime.gates import Gates
from tfswa.runtime.parity.certificate import Certificate
from tfswa.runtime.parity.report import tables
from tfswa.runtime.parity.report.charts import snr_chart
from tfswa.runtime.parity.report.excerpts import Showcase, SongExcerpts
from tfswa.runtime.parity.report.formats import LONGEST, Judged, decibels, limits

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent


def page(
    model: str,
    judged: Judged,
    gates: Gates,
    showcase: Showcase | None,
    *,
    missing: Mapping[str, str] | None = None,
) -> str:
    """Render the page.

    Args:
        model: its name.
        judged: certificates with their breaches, at least one.
        gates: that they were judged by.
        showcase: pictures and players; None where nothing was measured for this page.
        missing: why others were not measured, by name.

    Raises:
        BackendUnavailable: Jinja2 or matplotlib is not installed.
    """
    names = _names([certificate for certificate, _ in judged])
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "media-src data:; base-uri 'none'; form-action 'none'"
    )
    listed = [
        (name, limits(one, gates), breaches[:LONGEST], len(breaches[LONGEST:]))
        for name, (one, breaches) in zip(names, judged, strict=True)
    ]
    return (
        templates()
        .get_template("page.html")
        .render(
            model=model,
            style=style,
            script=script,
            policy=policy,
            facts=_facts([certificate for certificate, _ in judged], gates),
            listed=listed,
            missing=missing or {},
            charts=list(_charts(judged, names, gates)),
            showcase=showcase,
            shown=[] if showcase is None else list(_shown(judged, showcase)),
            verdicts=tables.verdicts(judged, names),
            stems=tables.stems(judged, names),
            difficult=tables.difficult(judged, names),
            axes=tables.axes(judged, names),
            graph=tables.graph(judged, names),
        )
    )


def templates() -> Environment:
    """Where ``page.html`` is found; every text that is filled in is escaped.

    Raises:
        BackendUnavailable: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise BackendUnavailable(
            "a report needs Jinja2: pip install 'tfswa[plots]', or leave out --report"
        ) from error
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=html_ready,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"decibels": decibels, "uri": _uri}
    return environment


def _names(certificates: Sequence[Certificate]) -> list[str]:
    """A name for each, with as much as tells them apart."""
    ways = (
        lambda one: one.name,
        lambda one: f"{one.name} {one.device}",
        lambda one: f"{one.name} {one.device}, {one.date}",
    )
    for way in ways:
        names = [way(certificate) for certificate in certificates]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def _facts(found: Sequence[Certificate], gates: Gates) -> dict[str, list[str]]:
    """What all figures are bound to; where certificates differ, all that they say."""
    versions = sorted({f"{name} {number}" for one in found for name, number in one.versions.items()})
    facts: dict[str, Iterable[str]] = {
        "date": (one.date for one in found),
        "processor": (one.cpu for one in found),
        "device": (one.device for one in found),
        "threads": (str(one.threads or "all") for one in found),
        "chunks at once": (str(one.batch) for one in found),
        "reference": (one.reference for one in found),
        "gates": [gates.source],
        "versions": [", ".join(versions)],
        "artifact": (f"{one.artifact} {one.artifact_sha256}" for one in found),
        "bundle": (one.source for one in found),
        "corpus": (one.corpus_sha256 for one in found),
    }
    return {name: list(dict.fromkeys(values)) for name, values in facts.items()}


def _charts(
    judged: Judged, names: Sequence[str], gates: Gates
) -> Iterator[tuple[str, str, float | None, bytes | None]]:
    """Song, stem, the lowest second in dB, and the chart; None for both where no second has an SNR."""
    charts: dict[tuple[str, str], dict[str, Sequence[float | None]]] = {}
    levels: dict[tuple[str, str], dict[str, float]] = {}
    for name, (certificate, _) in zip(names, judged, strict=True):
        for row in certificate.signal:
            if row.kind == "real":
                charts.setdefault((row.item, row.stem), {})[name] = row.by_second_db
                limit = gates.of(certificate.precision, row.stem).snr_db
                if isfinite(limit):
                    levels.setdefault((row.item, row.stem), {})[f"gate of {certificate.precision}"] = limit
    for (item, stem), lines in charts.items():
        known = [value for line in lines.values() for value in line if value is not None]
        yield item, stem, min(known, default=None), snr_chart(lines, levels.get((item, stem), {}))


def _shown(judged: Judged, showcase: Showcase) -> Iterator[tuple[str, SongExcerpts]]:
    """Songs that showcase hold, in the order of the corpus."""
    seen = set()
    for certificate, _ in judged:
        for item in certificate.corpus:
            excerpts = showcase.of(certificate, item)
            if excerpts is not None and item not in seen:
                seen.add(item)
                yield item, excerpts


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
