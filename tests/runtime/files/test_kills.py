"""Commands that are killed at random moments: afterwards everything is old or new, and after the next run
nothing is left that a run which nobody killed would not leave.

``TFX_LONG=1`` kills 130 times, over all commands that write; otherwise ten times. The table that it prints is
in ``docs/files.md``.
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
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import small_import
import soundfile
from writing_commands import (
    BUILD,
    CALIBRATE,
    EVALUATE,
    EXPORT,
    IMPORT,
    NEW,
    PARITY,
    RATE,
    SEPARATE,
    TRAIN,
    furnish,
)

from tfswa.runtime.model.bundle import Bundle

LONG = bool(os.environ.get("TFX_LONG"))
SECONDS = 6  # of the song
SIGNALS = (signal.SIGKILL, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGINT)
CODES = {signal.SIGKILL: -9, signal.SIGHUP: 129, signal.SIGQUIT: 131, signal.SIGTERM: 143, signal.SIGINT: 130}
HANGS_SECONDS = 600.0  # what takes longer never ends

POOLED = (*EVALUATE, "--jobs", "2")
PLAN: list[tuple[tuple[str, ...], int]] = (
    [
        (SEPARATE, 30),
        (EXPORT, 15),
        (CALIBRATE, 15),
        (PARITY, 15),
        (IMPORT, 15),
        (POOLED, 10),
        (TRAIN, 10),
        (NEW, 10),
        (BUILD, 10),
    ]
    if LONG
    else [(SEPARATE, 7), (CALIBRATE, 1), (PARITY, 1), (IMPORT, 1)]
)


@dataclass(frozen=True)
class Place:
    """A folder to work in, with a cache and a temporary folder of its own."""

    path: Path

    @property
    def work(self) -> Path:
        return self.path / "work"

    def start(self, command: tuple[str, ...]) -> subprocess.Popen[str]:
        env = {**os.environ, "TMPDIR": str(self.path / "tmp"), "XDG_CACHE_HOME": str(self.path / "cache")}
        program = [small_import.__file__] if command is IMPORT else ["-m", "tfswa.runtime"]
        if command is TRAIN and list(self.work.glob("run/checkpoints/[!.]*.ckpt")):
            command = (*TRAIN, "--resume")
        return subprocess.Popen(
            [sys.executable, *program, *command],
            cwd=self.work,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def run(self, command: tuple[str, ...]) -> float:
        """Run to the end of it and of all its children; seconds that it took."""
        start, process = time.monotonic(), self.start(command)
        said, _ = process.communicate(timeout=HANGS_SECONDS)
        # A verdict of parity is 3: the network is untrained.
        assert process.returncode in ((0, 3) if command is PARITY else (0,)), said
        return time.monotonic() - start

    def names(self) -> list[str]:
        """What lies in the three folders; a training that is killed keeps its log for TensorBoard."""
        return sorted(
            str(path.relative_to(self.path))
            for folder in ("work", "tmp", "cache")
            for path in (self.path / folder).rglob("*")
            if not path.name.startswith("events.out.tfevents.")
        )

    def incomplete(self) -> list[str]:
        """What a kill left lying about: partial and temporary files."""
        return [name for name in self.names() if ".partial-" in name or name.startswith("tmp/")]


@pytest.fixture
def place(exported_bundle: Path, song_root: Path, tmp_path: Path) -> Callable[[], Place]:
    def make() -> Place:
        folder = tmp_path / "a place"
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("work", "tmp", "cache"):
            (folder / name).mkdir(parents=True)
        furnish(folder / "work", exported_bundle, song_root, SECONDS)
        Bundle.open(folder / "work" / "mine.tfx").add("notes", b"mine", kind="document")
        return Place(folder)

    return make


def killed(place: Place, command: tuple[str, ...], number: signal.Signals, seconds: float) -> bool:
    """Kill a command after so many seconds, and wait for all its processes; False: it had ended before."""
    process = place.start(command)
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        # Its children have its standard output: that it is closed says that they ended, too.
        said, _ = process.communicate(timeout=HANGS_SECONDS)
    # One that came before tfx could look at signals has Python's or the system's own answer.
    assert process.returncode in (CODES[number], -number, 0, 3), (number, process.returncode, said)
    if process.returncode == CODES[number]:
        assert "Traceback" not in said, said
    return process.returncode not in (0, 3)


def whole(place: Place, entries: set[str]) -> None:
    """At once after a kill: what is there is whole, no entry of the bundle is lost."""
    bundle = Bundle.open(place.work / "mine.tfx")
    assert bundle.file("notes").read_bytes() == b"mine"
    assert entries <= set(bundle.files)
    finished = [path for path in place.path.rglob("*") if ".partial-" not in str(path)]
    for path in finished:
        inside = path.relative_to(place.path).parts
        if path.suffix == ".tfx":
            found = Bundle.open(path)
            for name in found.files:
                found.file(name)  # its hash is checked
        elif path.suffix == ".json" and inside[0] == "work":
            json.loads(path.read_text())
        elif path.suffix == ".wav" and inside[:2] == ("work", "out"):
            assert soundfile.info(path).frames == RATE * SECONDS
        elif path.suffix == ".ckpt":
            from tfswa.train.checkpoint import load_newest

            load_newest(path.parent.parent)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "kills"), PLAN, ids=[command[0] for command, _ in PLAN])
def test_killed_commands_leave_nothing_half_and_the_next_run_leaves_nothing_else(
    place: Callable[[], Place], command: tuple[str, ...], kills: int
) -> None:
    if command is BUILD:
        pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: engines need it")
    chance = random.Random(command[0])
    here = place()
    entries = set(Bundle.open(here.work / "mine.tfx").files)
    seconds = here.run(command)
    clean = here.names()
    done: Counter[signal.Signals] = Counter()
    swept: Counter[signal.Signals] = Counter()
    while done.total() < kills:
        here, number = place(), SIGNALS[done.total() % len(SIGNALS)]
        start = time.monotonic()
        if killed(here, command, number, seconds * chance.uniform(0.2, 1.0)):
            done[number] += 1
            swept[number] += bool(here.incomplete())
        else:  # the machine is faster than it was
            seconds = min(seconds, time.monotonic() - start)
        whole(here, entries)
        here.run(command)
        whole(here, entries)
        assert here.names() == clean
    for number, count in done.items():  # with half a file, a leftover or a lost entry it had failed above
        print(f"| {command[0]} | {number.name} | {count} | {swept[number]} | 0 | 0 | 0 |")
