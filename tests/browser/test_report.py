"""The report of parity in a real browser: headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from measured import certificate_of, heard, made_song, reference_of, rounded

from tfswa.runtime.gates import default_gates
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.parity.judge import judge
from tfswa.runtime.parity.report.page import page

pytestmark = pytest.mark.browser
pytest.importorskip("matplotlib", reason="matplotlib is not installed: it draws what the page shows")

NAMES = ("chromium", "chromium-browser", "google-chrome")
NASTY = "<script>console.log('ran')</script>"
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
SCRIPT = re.compile(r"<script>.*?</script>", re.DOTALL)
# Plays, changes what is heard in the middle, and says where it stands. Nothing is waited for: the clock of
# a browser with a budget runs ahead of its sound.
PROBE = """<script>
addEventListener("load", () => {
  const player = document.querySelector(".player");
  const [, reference, artifact] = player.querySelectorAll("audio");
  const [, first, second] = player.querySelectorAll("button");
  first.click();
  reference.currentTime = 1.5;
  reference.play().catch(() => {});
  second.click();
  document.body.appendChild(document.createElement("output")).textContent = JSON.stringify({
    paused: [reference.paused, artifact.paused],
    position: artifact.currentTime,
    hidden: [reference.closest(".clip").hidden, artifact.closest(".clip").hidden],
    pressed: [first, second].map((button) => button.getAttribute("aria-pressed")),
  });
});
</script>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("chromium is not installed: it opens the page (apt-get install chromium)")
    return found


def opened(chromium: str, path: Path) -> tuple[str, list[str]]:
    """The page as the browser has it after its script ran, and all that the console said."""
    done = subprocess.run(
        [
            chromium,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--autoplay-policy=no-user-gesture-required",
            f"--user-data-dir={path.parent / 'profile'}",
            "--enable-logging=stderr",
            "--virtual-time-budget=10000",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    # The console's errors come as INFO:CONSOLE too: a page of ours has nothing to say there at all.
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def report(spec: ModelSpec, *, audio: bool = True) -> str:
    song = made_song(NASTY, spec, 3.0)
    right = reference_of(song, spec)
    found = {NASTY: (song, right, rounded(right))}
    certificate = certificate_of(spec, found)
    return page(
        "tiny",
        [(certificate, judge(certificate, default_gates()))],
        default_gates(),
        heard(spec, found, audio=audio),
    )


def test_table_plots_and_players_are_there(chromium: str, tmp_path: Path, tiny_spec: ModelSpec) -> None:
    path = tmp_path / "report.html"
    path.write_text(report(tiny_spec))
    dom, console = opened(chromium, path)
    assert console == []
    assert len(re.findall(r"<table>", dom)) == 5
    assert "SI-SDR dB</th>" in dom
    widths = re.findall(r'<img [^>]*data-ready="(\d+)"', dom)
    assert len(widths) == dom.count("<img ") == 6 + 2
    assert all(int(width) > 100 for width in widths)
    assert len(re.findall(r'<img class="chart" ', dom)) == 2
    durations = re.findall(r'<audio [^>]*data-ready="([\d.]+)"', dom)
    assert len(durations) == dom.count("<audio ") == 8
    assert all(float(duration) == pytest.approx(3.0, abs=0.1) for duration in durations)
    assert (
        len(re.findall(r"<button [^>]*aria-pressed=", dom)) == 8
    )  # the page's own script ran, its policy notwithstanding
    assert "This browser cannot play" not in SCRIPT.sub("", dom)


def test_without_audio_too(chromium: str, tmp_path: Path, tiny_spec: ModelSpec) -> None:
    path = tmp_path / "report.html"
    path.write_text(report(tiny_spec, audio=False))
    dom, console = opened(chromium, path)
    assert console == []
    assert "<audio" not in dom
    assert len(re.findall(r'<img [^>]*data-ready="\d', dom)) == 6 + 2


def test_the_switch_keeps_the_position(chromium: str, tmp_path: Path, tiny_spec: ModelSpec) -> None:
    path = tmp_path / "report.html"
    text, count = POLICY.subn("", report(tiny_spec))  # which would keep the probe from running
    assert count == 1
    path.write_text(text.replace("</body>", f"{PROBE}</body>"))
    dom, console = opened(chromium, path)
    assert console == []
    said = json.loads(re.findall("<output>(.*)</output>", dom)[0])
    assert said == {
        "paused": [True, False],
        "position": 1.5,
        "hidden": [True, False],
        "pressed": ["false", "true"],
    }


def test_the_policy_forbids_what_is_not_the_pages_own(
    chromium: str, tmp_path: Path, tiny_spec: ModelSpec
) -> None:
    path = tmp_path / "report.html"
    foreign = '<img src="file:///foreign.png"><script>document.title = "taken"</script>'
    path.write_text(report(tiny_spec).replace("</body>", f"{foreign}</body>"))
    dom, console = opened(chromium, path)
    assert "<title>taken" not in dom
    assert len(console) == 2  # so a violation of the page's own would be seen above
    assert all("Content Security Policy" in line for line in console)
