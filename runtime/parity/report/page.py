"""The report of parity: one HTML page that needs nothing else, no network, no other file.

Its policy (Content-Security-Policy) lets the page's own style and script run, by their hashes, and takes
pictures and sound from the page itself only. The players hold parts of the songs: who may not pass those
on leaves them out.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path

from tfswa.runtime.gates import Gates
from tfswa.runtime.parity.certificate import Certificate
from tfswa.runtime.parity.report import tables
from tfswa.runtime.parity.report.charts import snr_chart
from tfswa.runtime.parity.report.excerpts import DIFFERENCE, Excerpt, Second, Showcase, SongExcerpts
from tfswa.runtime.parity.report.formats import Judged, decibels
from tfswa.runtime.parity.report.markup import Markup, element, join

STYLE = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("page.js")

_SECTIONS = {
    "verdict": "Verdict",
    "stems": "Stem by stem",
    "time": "Error over time",
    "seconds": "Worst seconds",
    "players": "Listen",
    "difficult": "Difficult signals",
    "axes": "Against itself",
    "graph": "The network alone",
}


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
    """
    names = _names([certificate for certificate, _ in judged])
    parts = {
        "verdict": tables.verdicts(judged, names, gates, missing or {}),
        "stems": tables.stems(judged, names),
        "time": _over_time(judged, names, gates),
        "seconds": _seconds(judged, showcase),
        "players": _players(judged, showcase),
        "difficult": tables.difficult(judged, names),
        "axes": tables.axes(judged, names),
        "graph": tables.graph(judged, names),
    }
    links = [element("li", element("a", title, href=f"#{key}")) for key, title in _SECTIONS.items()]
    sections = [
        element("section", element("h2", _SECTIONS[key]), part, id=key) for key, part in parts.items()
    ]
    body = join(
        element("header", element("h1", f"Parity of {model}"), _provenance(judged, gates)),
        element("nav", element("ul", *links), aria_label="Sections"),
        element("main", *sections),
    )
    return _document(f"Parity of {model}", body)


def _document(title: str, body: Markup) -> str:
    style, script = (path.read_text(encoding="utf-8") for path in (STYLE, SCRIPT))
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "media-src data:; base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("link", rel="icon", href="data:,"),
        element("style", Markup(style)),
    )
    return "<!DOCTYPE html>\n" + element(
        "html", head, element("body", body, element("script", Markup(script))), lang="en"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


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


def _provenance(judged: Judged, gates: Gates) -> Markup:
    """What all figures are bound to; where certificates differ, all that they say."""
    found = [certificate for certificate, _ in judged]
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
    rows = []
    for name, values in facts.items():
        rows.append(element("dt", name))
        rows += [element("dd", value) for value in dict.fromkeys(values)]
    return element("dl", *rows)


def _over_time(judged: Judged, names: Sequence[str], gates: Gates) -> Markup:
    charts: dict[tuple[str, str], dict[str, Sequence[float | None]]] = {}
    limits: dict[tuple[str, str], dict[str, float]] = {}
    for name, (certificate, _) in zip(names, judged, strict=True):
        for row in certificate.signal:
            if row.kind == "real":
                charts.setdefault((row.item, row.stem), {})[name] = row.by_second_db
                limit = gates.of(certificate.precision, row.stem).snr_db
                if isfinite(limit):
                    limits.setdefault((row.item, row.stem), {})[f"gate of {certificate.precision}"] = limit
    parts = []
    for (item, stem), lines in charts.items():
        chart = snr_chart(f"{item}, {stem}", lines, limits.get((item, stem), {}))
        nothing = element("p", "No second has an SNR: identical, or the reference is silent.")
        parts.append(element("figure", element("figcaption", f"{item}: {stem}"), chart or nothing))
    return join(*parts) if parts else element("p", "No song was separated to the end.")


def _seconds(judged: Judged, showcase: Showcase | None) -> Markup:
    """Spectrograms of the worst second of each stem and run."""
    if showcase is None:
        return _not_measured("pictures")
    parts: list[Markup] = [_which(showcase)]
    for item, excerpts in _shown(judged, showcase):
        parts.append(element("h3", item))
        stems = list(dict.fromkeys(stem for _, stem in excerpts.seconds))
        for second in sorted(excerpts.seconds.values(), key=lambda one: stems.index(one.stem)):
            parts.append(_second(item, second))
    return join(*parts)


def _second(item: str, second: Second) -> Markup:
    snr = "" if second.snr_db is None else f", SNR {decibels(second.snr_db)}"
    span = f"the second from {second.start} s"
    caption = f"{second.stem}, {second.run}: {span} ({second.why}{snr})"
    images = [
        element(
            "div",
            element(
                "img",
                src=_uri("image/png", png),
                alt=f"Spectrogram of the {name}: {item}, {second.stem}, {second.run}, {span}",
                width=360,
                height=270,
            ),
            element("span", name if name != DIFFERENCE else f"{name}, colors of its own"),
            class_="picture",
        )
        for name, png in second.pictures.items()
    ]
    inside = element("div", *images, class_="pictures") if images else element("p", "Silent in both.")
    return element("figure", element("figcaption", caption), inside)


def _players(judged: Judged, showcase: Showcase | None) -> Markup:
    if showcase is None:
        return _not_measured("players")
    if not showcase.audio:
        return element("p", "Left out (--no-audio): the page holds no part of the songs' sound.")
    parts = [
        element(
            "p",
            "Up to 10 s around the worst second. One button changes what is heard and keeps the position. "
            "Opus at some 120 kbit/s, for listening: the figures are of the samples themselves. Differences "
            "are turned up before they are coded, by what their button says.",
        ),
        element(
            "p",
            element("strong", "These are parts of the songs: "),
            "see that their license lets you pass this page on, or make it with ",
            element("code", "--no-audio"),
            ".",
        ),
        _which(showcase),
    ]
    for item, excerpts in _shown(judged, showcase):
        parts.append(element("h3", item))
        if excerpts.gain_db < 0:
            parts.append(element("p", f"Beyond full scale: all turned down by {-excerpts.gain_db:.1f} dB."))
        parts += [_player(item, excerpt) for excerpt in excerpts.excerpts]
    return join(*parts)


def _player(item: str, excerpt: Excerpt) -> Markup:
    end = excerpt.start + excerpt.seconds
    clips = [
        element(
            "div",
            element("span", clip.name, class_="name"),
            element(
                "audio",
                controls=True,
                preload="metadata",
                src=_uri("audio/ogg", clip.ogg),
                aria_label=f"{item}, {excerpt.stem}: {clip.name}",
            ),
            class_="clip",
        )
        for clip in excerpt.clips
    ]
    same = ", ".join(excerpt.identical)
    return element(
        "figure",
        element("figcaption", f"{excerpt.stem}, {excerpt.start:g} s to {end:.4g} s"),
        *clips,
        element("p", f"Identical to the reference, to the bit: {same}.") if same else None,
        class_="player",
    )


def _shown(judged: Judged, showcase: Showcase) -> Iterator[tuple[str, SongExcerpts]]:
    """Songs that showcase hold, in the order of the corpus."""
    seen = set()
    for certificate, _ in judged:
        for item in certificate.corpus:
            excerpts = showcase.of(certificate, item)
            if excerpts is not None and item not in seen:
                seen.add(item)
                yield item, excerpts


def _which(showcase: Showcase) -> Markup:
    kept, heard = showcase.kept, showcase.heard
    if not kept:
        return element("p", "No song was separated to the end.")
    if kept == heard:
        return join()
    return element("p", f"Of {heard} songs, the {kept} with the lowest second.")


def _not_measured(what: str) -> Markup:
    return element(
        "p",
        f"No {what}: the certificates were judged again (--judge), nothing was separated for this page. "
        "Leave out --judge to have them.",
    )


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
