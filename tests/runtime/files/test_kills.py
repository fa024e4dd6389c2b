"""Commands that are killed at random moments: afterwards everything is old or new, and after the next run
nothing is left that a run which nobody killed would not leave.

``TFX_LONG=1`` kills 100 times, over more commands; otherwise ten times.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tfswa.runtime.model.bundle import Bundle

LONG = bool(os.environ.get("TFX_LONG"))
RATE = 8000
SIGNALS = (signal.SIGKILL, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGINT)
CODES = {signal.SIGKILL: -9, signal.SIGHUP: 129, signal.SIGQUIT: 131, signal.SIGTERM: 143, signal.SIGINT: 130}
END_SECONDS = 60.0

SEPARATE = ("separate", "song.wav", "-m", "mine.tfx", "-o", "out", "--backend", "ort", "--force")
EXPORT = ("export", "mine.tfx", "--force")
CALIBRATE = ("calibrate", "mine.tfx", "--audio", "song.wav", "--chunks", "2", "--held-out", "1", "--force")
PARITY = (
    "parity",
    "mine.tfx",
    "--backend",
    "ort",
    "--audio",
    "song.wav",
    "--quick",
    "--markdown",
    "p.md",
    "--force",
)
EVALUATE = ("evaluate", "mine.tfx", "--data", "songs", "-o", "scores", "--jobs", "2", "--no-plot")
NEW = ("new", "tfswa_lite", "-o", "new.tfx", "--force")
PLAN: list[tuple[tuple[str, ...], int]] = (
    [(SEPARATE, 48), (NEW, 10), (PARITY, 12), (EVALUATE, 10), (CALIBRATE, 12), (EXPORT, 8)]
    if LONG
    else [(SEPARATE, 8), (CALIBRATE, 1), (PARITY, 1)]
)


@dataclass(frozen=True)
class Place:
    """A folder to work in, with a cache and a temporary folder of its own."""

    path: Path

    def start(self, command: tuple[str, ...]) -> subprocess.Popen[bytes]:
        env = {**os.environ, "TMPDIR": str(self.path / "tmp"), "XDG_CACHE_HOME": str(self.path / "cache")}
        with (self.path / "said").open("wb") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "tfswa.runtime", *command],
                cwd=self.path / "work",
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def run(self, command: tuple[str, ...]) -> None:
        code = self.start(command).wait(600)
        # A verdict of parity is 3: the network is untrained.
        assert code in ((0, 3) if command is PARITY else (0,)), (self.path / "said").read_text()

    def names(self) -> list[str]:
        """What lies in the three folders. What a library makes by the number of a process counts once."""
        return sorted(
            str(path.relative_to(self.path))
            for folder in ("work", "tmp", "cache")
            for path in (self.path / folder).rglob("*")
        )


@pytest.fixture
def place(exported_bundle: Path, song_root: Path, tmp_path: Path) -> Callable[[], Place]:
    def make() -> Place:
        folder = tmp_path / "a place"
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("work", "tmp", "cache"):
            (folder / name).mkdir(parents=True)
        shutil.copytree(exported_bundle, folder / "work" / "mine.tfx")
        Bundle.open(folder / "work" / "mine.tfx").add("notes", b"mine", kind="document")
        shutil.copytree(song_root, folder / "work" / "songs")
        noise = np.random.default_rng(0).standard_normal((RATE * 6, 2)).astype(np.float32) * 0.1
        soundfile.write(folder / "work" / "song.wav", noise, RATE, subtype="FLOAT")
        return Place(folder)

    return make


def killed(place: Place, command: tuple[str, ...], number: signal.Signals, seconds: float) -> bool:
    """Kill a command after so many seconds; False where it had ended before."""
    process = place.start(command)
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return False
    process.send_signal(number)
    code, said = process.wait(END_SECONDS), (place.path / "said").read_text(errors="replace")
    # One that came before tfx could look at signals has Python's or the system's own answer.
    assert code in (CODES[number], -number, 0, 3), (number, code, said)
    if code == CODES[number]:
        assert "Traceback" not in said, said
    wait_for_children(process.pid)
    return True


def wait_for_children(session: int) -> None:
    """See that what a command started ends with it."""
    limit = time.monotonic() + END_SECONDS
    while True:
        try:
            os.killpg(session, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < limit, f"processes of session {session} live on"
        time.sleep(0.05)


def whole(place: Place) -> None:
    """At once after a kill: what is there is whole, no entry is lost."""
    bundle = Bundle.open(place.path / "work" / "mine.tfx")
    assert bundle.file("notes").read_bytes() == b"mine"
    for name in bundle.files:
        bundle.file(name)
    for path in (place.path / "work" / "out").rglob("*.wav"):
        if ".partial-" not in str(path):
            assert soundfile.info(path).frames == RATE * 6
    for path in (place.path / "work" / "scores").rglob("*.json"):
        if ".partial-" not in str(path):
            json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("command", "kills"), PLAN, ids=[command[0] for command, _ in PLAN])
def test_killed_commands_leave_nothing_half_and_the_next_run_leaves_nothing_else(
    place: Callable[[], Place], command: tuple[str, ...], kills: int
) -> None:
    chance = random.Random(command[0])
    here = place()
    start = time.monotonic()
    here.run(command)
    seconds = time.monotonic() - start
    clean = here.names()
    done = 0
    for _ in range(kills * 10):
        if done == kills:
            break
        here = place()
        number = SIGNALS[done % len(SIGNALS)]
        if killed(here, command, number, seconds * chance.uniform(0.2, 1.0)):
            done += 1
        whole(here)
        here.run(command)
        whole(here)
        assert here.names() == clean
    assert done == kills
    print(f"tfx {command[0]}: {done} kills in a run of {seconds:.1f} s, nothing half, nothing left")
