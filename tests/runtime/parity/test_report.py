"""The report of parity: nothing from outside, nothing unescaped, and every figure where it belongs."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from command_line import Tfx
from measured import Audio, certificate_of, heard, made_song, reference_of, rounded

from tfswa.runtime.errors import BackendUnavailable
from tfswa.runtime.gates import default_gates
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.parity.judge import Breach, judge
from tfswa.runtime.parity.report import excerpts as exhibits_module
from tfswa.runtime.parity.report.charts import STEPS, snr_chart, thin
from tfswa.runtime.parity.report.excerpts import DIFFERENCE_PEAK_DB, SONGS, Showcase
from tfswa.runtime.parity.report.page import page
from tfswa.runtime.songs.loading import Song

RATE = 8000
NASTY = """<script>alert(1)</script> & "one" 'two'"""
KINDS = ("image/png", "image/svg+xml", "audio/ogg")
NASTY_STEM = "<img src=x onerror=alert(1)>"  # a stem's name can be a file's


class Page(HTMLParser):
    """Elements with their attributes, and the text of each kind of element."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        if tag not in ("meta", "link", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.texts[tag][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return self.texts["main"][0]


@pytest.fixture(autouse=True)
def _matplotlib(request: pytest.FixtureRequest) -> None:
    if "without" not in request.node.name:
        pytest.importorskip("matplotlib", reason="matplotlib is not installed: it draws")


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pictures are not what is tested."""
    monkeypatch.setattr(exhibits_module, "_draw", lambda *_, **__: b"png")


def case(
    spec: ModelSpec, name: str = "song", *, db: float = -60.0, seconds: float = 1.2, seed: int = 0
) -> dict[str, Any]:
    song = made_song(name, spec, seconds, seed)
    right = reference_of(song, spec)
    return {name: (song, right, rounded(right, db))}


def rendered(spec: ModelSpec, found: dict[str, Any], *, audio: bool = True, **changed: Any) -> Page:
    certificate = certificate_of(spec, found, **changed)
    judged = [(certificate, judge(certificate, default_gates()))]
    return Page(page("tiny", judged, default_gates(), heard(spec, found, audio=audio)))


def spectrograms(found: Page) -> list[str]:
    """What they are called."""
    named = [image["alt"] or "" for image in found.all("img")]
    return [name for name in named if name.startswith("Spectrogram of the ")]


class TestThePage:
    def test_it_holds_all_that_was_measured(self, tiny_spec: ModelSpec) -> None:
        found = rendered(tiny_spec, case(tiny_spec))
        assert found.all("html")[0]["lang"] == "en"
        head = found.texts["dl"][0]
        for fact in ("a processor", "2026-01-02", "onnxruntime 1.0", "eager float32", "c" * 64, "gates.toml"):
            assert fact in head
        columns = found.texts["thead"][1]
        for column in ("stem", "backend", "SNR dB", "SI-SDR dB", "drift dB", "x real time", "verdict"):
            assert column in columns
        assert len(found.texts["caption"]) == len(found.all("table")) == 5
        charts = [image["alt"] or "" for image in found.all("img") if image.get("class") == "chart"]
        assert [chart.partition(":")[0] for chart in charts] == ["song, vocals", "song, accompaniment"]
        assert all("SNR by second, lowest " in chart for chart in charts)
        assert len(spectrograms(found)) == 2 * 3
        players = found.all("audio")
        assert [player["aria-label"] for player in players][:4] == [
            "song, vocals: mixture",
            "song, vocals: reference",
            "song, vocals: ort fp32",
            "song, vocals: ort fp32: difference, +50 dB",
        ]
        assert len(players) == 2 * 4
        assert "4 chunks at once120.0 dB" in found.text
        assert "1 sample1.0e-06" in found.text

    def test_it_needs_nothing_from_outside(self, tiny_spec: ModelSpec) -> None:
        found = rendered(tiny_spec, case(tiny_spec))
        for _, attributes in found.elements:
            assert not {"style", "srcset", "onload", "onclick", "onerror"} & set(attributes)
            for key in ("src", "href"):
                value = attributes.get(key) or "#"
                assert value.startswith(("#", "data:,", *(f"data:{kind};base64," for kind in KINDS)))
        policy = next(meta["content"] for meta in found.all("meta") if "http-equiv" in meta)
        assert policy is not None
        assert policy.startswith("default-src 'none';")
        assert "unsafe" not in policy
        for kind in ("style", "script"):
            (inline,) = found.texts[kind]
            digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in policy
        assert "url(" not in found.texts["style"][0]
        assert "@import" not in found.texts["style"][0]

    def test_names_are_text(self, tiny_spec: ModelSpec) -> None:
        spec = dataclasses.replace(tiny_spec, stems=(NASTY_STEM, "accompaniment"))
        found = case(spec, NASTY)
        certificate = certificate_of(spec, found, backend=NASTY, cpu=NASTY, reference=NASTY)
        breaches = [Breach("signal", NASTY, NASTY_STEM, "SNR in dB", 1.0, 80.0)]
        shown = heard(spec, found, run=NASTY)
        text = page(NASTY, [(certificate, breaches)], default_gates(), shown, missing={NASTY: NASTY})
        assert "<script>alert" not in text
        assert NASTY_STEM not in text
        parsed = Page(text)
        assert len(parsed.all("script")) == 1
        assert parsed.texts["h1"] == [f"Parity of {NASTY}"]
        for word in (NASTY, NASTY_STEM):
            assert all(word in name for name in spectrograms(parsed)[:3])
        assert any(NASTY in (player["aria-label"] or "") for player in parsed.all("audio"))
        assert f"not measured, {NASTY}: {NASTY}" in parsed.text

    def test_what_failed_says_so_in_words(self, tiny_spec: ModelSpec) -> None:
        found = rendered(tiny_spec, case(tiny_spec, db=-30.0))
        failed = [text for text in found.texts["td"] if text.startswith("FAILED")]
        assert failed == ["FAILED: 4 figures", "FAILED: SNR, drift", "FAILED: SNR, drift"]
        assert "signal: SNR in dB of vocals on song is" in found.text

    def test_figures_that_are_not_defined(self, tiny_spec: ModelSpec) -> None:
        found = case(tiny_spec)
        whole = certificate_of(tiny_spec, found, x_realtime=None)
        none: dict[str, dict[str, Any]] = {
            "signal": dict.fromkeys(("snr_db", "si_sdr_db", "peak_error", "worst_second")),
            "graph": dict.fromkeys(("snr_db", "relative_error")),
            "quality": dict.fromkeys(("drift_db", "drift_c_db", "worst_window", "worst_drift_db")),
            "axes": {"snr_db": None, "identical": False},
        }
        none["signal"] |= {"identical": False, "by_second_db": [None] * 3}
        for level, fields in none.items():
            rows = [dataclasses.replace(row, **fields) for row in getattr(whole, level)]
            whole = dataclasses.replace(whole, **{level: rows})
        text = page("tiny", [(whole, judge(whole, default_gates()))], default_gates(), None)
        parsed = Page(text)
        assert "No second has an SNR" in parsed.text
        assert "identical" not in parsed.texts["td"]  # nothing is known to be
        assert "None" not in re.sub(r"None was measured", "", parsed.text)
        assert "nan" not in parsed.text

    def test_nothing_but_a_verdict_where_no_song_came_through(self, tiny_spec: ModelSpec) -> None:
        empty = certificate_of(tiny_spec, {}, signal=[], graph=[], axes=[], non_finite={"song": 5})
        judged = [(empty, judge(empty, default_gates()))]
        found = Page(page("tiny", judged, default_gates(), Showcase(tiny_spec)))
        assert "count of NaN and Inf on song is 5" in found.text
        assert "No song was separated to the end" in found.text

    def test_without_audio_there_is_no_sound(self, tiny_spec: ModelSpec) -> None:
        found = rendered(tiny_spec, case(tiny_spec), audio=False)
        assert not found.all("audio")
        assert "--no-audio" in found.text
        assert len(spectrograms(found)) == 2 * 3

    def test_what_was_judged_again_says_why_it_shows_nothing(self, tiny_spec: ModelSpec) -> None:
        certificate = certificate_of(tiny_spec, case(tiny_spec))
        found = Page(page("tiny", [(certificate, [])], default_gates(), None))
        assert not found.all("audio")
        assert not spectrograms(found)
        assert found.text.count("nothing was separated for this page") == 2

    def test_backends_of_one_name_are_told_apart(self, tiny_spec: ModelSpec) -> None:
        certificate = certificate_of(tiny_spec, case(tiny_spec))
        other = dataclasses.replace(certificate, device="cuda")
        rows = Page(page("tiny", [(certificate, []), (other, [])], default_gates(), None)).texts["tr"]
        assert any(row.startswith("ort fp32 cpu") for row in rows)
        assert any(row.startswith("ort fp32 cuda") for row in rows)
        same = Page(page("tiny", [(certificate, []), (certificate, [])], default_gates(), None)).texts["tr"]
        assert any("(2)" in row for row in same)


@pytest.mark.usefixtures("no_pictures")
class TestExhibits:
    def test_the_worst_second_is_the_one_of_the_figures(self, tiny_spec: ModelSpec) -> None:
        song = made_song("song", tiny_spec, 5)
        right = reference_of(song, tiny_spec)
        found = rounded(right)
        found[0, :, 3 * RATE + 5] += 0.5
        shown = heard(tiny_spec, {"song": (song, right, found)})
        certificate = certificate_of(tiny_spec, {"song": (song, right, found)})
        exhibit = shown.of(certificate, "song")
        assert exhibit is not None
        for row in certificate.signal:
            if row.kind == "real":
                second = exhibit.seconds["ort fp32", row.stem]
                assert row.worst_second == second.start
                assert row.worst_second is not None
                assert second.snr_db == row.by_second_db[row.worst_second]
        assert exhibit.seconds["ort fp32", "vocals"].start == 3

    def test_identical_outputs_have_no_artifact_of_their_own(self, tiny_spec: ModelSpec) -> None:
        song = made_song("song", tiny_spec)
        right = reference_of(song, tiny_spec)
        right[:, :, RATE : 2 * RATE] *= 2
        found = {"song": (song, right, right.copy())}
        exhibit = heard(tiny_spec, found).of(certificate_of(tiny_spec, found), "song")
        assert exhibit is not None
        second = exhibit.seconds["ort fp32", "vocals"]
        assert (second.start, second.why, list(second.pictures)) == (1, "loudest, identical", ["reference"])
        assert [clip.kind for clip in exhibit.excerpts[0].clips] == ["mixture", "reference"]
        assert exhibit.excerpts[0].identical == ["ort fp32"]
        text = rendered(tiny_spec, found).text
        assert "Identical to the reference, to the bit: ort fp32." in text
        assert "No second has an SNR" in text

    def test_a_silent_stem_shows_where_it_differs(self, tiny_spec: ModelSpec) -> None:
        song = made_song("song", tiny_spec)
        right = 0 * reference_of(song, tiny_spec)
        wrong = right.copy()
        wrong[0, 0, 2 * RATE + 1] = 0.1
        found = {"song": (song, right, wrong)}
        exhibit = heard(tiny_spec, found).of(certificate_of(tiny_spec, found), "song")
        assert exhibit is not None
        second = exhibit.seconds["ort fp32", "vocals"]
        assert (second.start, second.why, second.snr_db) == (2, "largest difference", None)
        assert list(second.pictures) == ["artifact", "difference"]
        assert exhibit.seconds["ort fp32", "accompaniment"].pictures == {}
        assert "Silent in both." in rendered(tiny_spec, found).text

    def test_of_many_songs_those_that_lost_most_are_kept(self, tiny_spec: ModelSpec) -> None:
        found: dict[str, Any] = {}
        count = SONGS + 3
        for number in range(count):  # the later, the better: the last one is let go too
            found |= case(tiny_spec, f"song {number}", db=-40.0 - 3 * number, seconds=0.5, seed=number)
        certificate = certificate_of(tiny_spec, found)
        shown = heard(tiny_spec, found)
        assert shown.kept == SONGS
        kept = [name for name in found if shown.of(certificate, name)]
        assert kept == [f"song {number}" for number in range(SONGS)]
        text = Page(page("tiny", [(certificate, [])], default_gates(), shown)).text
        assert text.count(f"Of {count} songs, the {SONGS} with the lowest second.") == 2

    def test_what_is_kept_is_bounded_in_bytes(
        self, tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(exhibits_module, "BYTES", 1)
        found = (
            case(tiny_spec, "a", seed=1)
            | case(tiny_spec, "b", db=-30.0, seed=2)
            | case(tiny_spec, "c", seed=3)
        )
        shown = heard(tiny_spec, found)
        assert shown.kept == 1
        assert shown.of(certificate_of(tiny_spec, found), "b")

    def test_one_reference_for_worst_seconds_that_are_near(
        self, tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(exhibits_module, "EXCERPT_SECONDS", 2)
        song = made_song("song", tiny_spec, 8)
        right = reference_of(song, tiny_spec)

        def spoilt(second: int) -> Audio:
            wrong = right.copy()
            wrong[:, :, second * RATE + 3] += np.float32(0.4)
            return wrong

        shown = Showcase(tiny_spec)
        for run, second in (("one", 4), ("two", 3), ("three", 7)):
            shown.listen(song, run, right, spoilt(second))
        certificate = certificate_of(tiny_spec, {"song": (song, right, right)})
        exhibit = shown.of(certificate, "song")
        assert exhibit is not None
        mine = [excerpt for excerpt in exhibit.excerpts if excerpt.stem == "vocals"]
        assert [(excerpt.start, excerpt.seconds) for excerpt in mine] == [(3, 2.0), (6, 2.0)]
        assert [[clip.name for clip in excerpt.clips if clip.kind == "artifact"] for excerpt in mine] == [
            ["one", "two"],
            ["three"],
        ]
        for excerpt in mine:
            assert sum(clip.kind == "reference" for clip in excerpt.clips) == 1
            for clip in excerpt.clips:
                samples, rate = soundfile.read(io.BytesIO(clip.ogg))
                assert len(samples) / rate == pytest.approx(2.0, abs=0.1)

    def test_differences_are_turned_up_by_what_is_said(self, tiny_spec: ModelSpec) -> None:
        time = np.arange(2 * RATE) / RATE
        tone = np.tile(np.sin(2 * np.pi * 500 * time), (2, 2, 1)).astype(np.float32)
        song = Song("song", tone.sum(axis=0), {})
        found = {"song": (song, tone * np.float32(0.5), tone * np.float32(0.5 + 2**-14))}
        exhibit = heard(tiny_spec, found).of(certificate_of(tiny_spec, found), "song")
        assert exhibit is not None
        assert exhibit.gain_db == pytest.approx(-20 * np.log10(2), abs=0.01)  # of the mixture
        mixture, reference, _, difference = exhibit.excerpts[0].clips
        assert difference.name == "ort fp32: difference, +72 dB"
        for clip, peak_db in ((mixture, 0), (reference, -12), (difference, 72 - 20 * np.log10(2**14))):
            samples, _ = soundfile.read(io.BytesIO(clip.ogg))
            loud = np.sqrt(2 * np.mean(samples[2000:12000] ** 2))
            assert 20 * np.log10(loud) == pytest.approx(peak_db, abs=0.5), clip.name
        assert 72 - 20 * np.log10(2**14) <= DIFFERENCE_PEAK_DB

    def test_without_opus_the_way_out_is_named(
        self, tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("matplotlib", reason="matplotlib is not installed: it is asked for first")
        monkeypatch.setattr(soundfile, "check_format", lambda *_: False)
        with pytest.raises(BackendUnavailable, match="or add --no-audio"):
            Showcase(tiny_spec)
        Showcase(tiny_spec, audio=False)


@pytest.mark.parametrize("seconds", [0.0, 2 / RATE, 1.0, 1.0 + 1 / RATE])
def test_songs_of_any_length(tiny_spec: ModelSpec, seconds: float) -> None:
    found = rendered(tiny_spec, case(tiny_spec, seconds=seconds))
    assert len(spectrograms(found)) == 2 * 3
    assert len(found.all("audio")) == 2 * 4


def drawn(lines: Any, limits: Any = None) -> str:
    chart = snr_chart(lines, limits or {})
    assert chart is not None
    return chart.decode()


def line_of(chart: str) -> str:
    """The path of the first run."""
    return re.findall(r'<g id="patch_3">\s*<path d="([^"]*)"', chart)[0]


class TestTheChart:
    def test_no_fall_is_lost_where_a_line_is_thinned(self) -> None:
        line: list[float | None] = [100.0] * (2 * STEPS + 5)
        line[1234] = 30.0
        line[30:36] = [None] * 6
        group = 3
        thinned = thin(line, group)
        assert len(thinned) == -(-len(line) // group)
        assert thinned[1234 // group] == 30.0
        assert thinned[10] is None
        chart = drawn({"a": line})
        assert "the lowest of every 3 seconds" in chart
        assert chart.count("L") < 2 * STEPS + 500

    def test_gaps_are_left_open(self) -> None:
        whole, gap = drawn({"a": [90.0] * 4}), drawn({"a": [100.0, None, 90.0, 95.0]}, {"gate": 80.0})
        assert line_of(whole).count("M") == 1
        assert line_of(gap).count("M") == 2
        assert "gate, 80 dB" in gap

    def test_a_line_of_one_level_and_a_line_of_nothing(self) -> None:
        chart = drawn({"a": [100.0], "b": [None]})
        assert "b (no line: identical, or not defined)" in chart
        assert "nan" not in chart
        assert snr_chart({"b": [None]}, {"gate": 80.0}) is None

    def test_thirty_lines_differ(self) -> None:
        chart = drawn({str(number): [float(number)] for number in range(30)})
        lines = re.findall(r'<path d="[^"]*" clip-path="[^"]*" style="(fill: none; [^"]*)"', chart)
        looks = {style for style in lines if "stroke-opacity" not in style}
        assert len(looks) == 30

    def test_it_is_the_same_to_the_byte(self) -> None:
        assert drawn({"a": [100.0, 90.0]}) == drawn({"a": [100.0, 90.0]})


class TestTheCommand:
    def test_a_page_of_what_was_measured_and_one_of_what_was_judged(
        self, tfx: Tfx, network_bundle: Bundle, tmp_path: Path, song_root: Path
    ) -> None:
        path = tmp_path / "pages" / "report.html"
        gates = tmp_path / "gates.toml"
        gates.write_text("[fp32]\nsnr_db = 10\n")
        measure = ("parity", network_bundle.path, "--backend", "torch", "--audio", song_root / "A", "--quick")
        code, _, said = tfx(*measure, "--report", path)
        assert code == 0, said
        assert f"{path}: " in said
        found = Page(path.read_text())
        assert len(found.all("audio")) >= 2 * 2
        assert found.all("img")
        code, _, said = tfx(*measure, "--report", path)
        assert code != 0
        assert "is there already" in said
        code, _, said = tfx("parity", network_bundle.path, "--judge", gates, "--report", path, "--force")
        assert code == 0, said
        found = Page(path.read_text())
        assert not found.all("audio")
        assert "nothing was separated for this page" in found.text
        assert [one.name for one in path.parent.iterdir()] == ["report.html"]

    def test_no_audio_wants_a_report(self, tfx: Tfx, tiny_bundle: Bundle) -> None:
        code, _, said = tfx("parity", tiny_bundle.path, "--no-audio")
        assert code == 2
        assert "--report FILE" in said

    def test_without_matplotlib_nothing_is_measured(
        self, tfx: Tfx, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        monkeypatch.setattr("tfswa.runtime.parity.compare.certify", None)
        code, _, said = tfx("parity", tiny_bundle.path, "--backend", "ort", "--report", tmp_path / "r.html")
        assert code == 4
        assert "pip install 'tfswa[plots]'" in said
        assert "leave out --report" in said
        assert not (tmp_path / "r.html").exists()

    def test_without_jinja_nothing_is_measured(
        self, tfx: Tfx, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "jinja2", None)
        monkeypatch.setattr("tfswa.runtime.parity.compare.certify", None)
        code, _, said = tfx("parity", tiny_bundle.path, "--backend", "ort", "--report", tmp_path / "r.html")
        assert code == 4
        assert "a report needs Jinja2: pip install 'tfswa[plots]'" in said
        assert not (tmp_path / "r.html").exists()
