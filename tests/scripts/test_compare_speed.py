"""Two installed versions compared: a row for each song, and a command that fails is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "compare_speed.py"
TFX = Path(sys.executable).with_name("tfx")


def compare(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=600
    )


def test_a_row_for_a_song(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "one.wav", np.zeros((4410, 2)), 44100)
    kept = tmp_path / "speed.json"
    done = compare(TFX, TFX, tmp_path / "one.wav", "--runs", 1, "--json", kept)
    assert done.returncode == 0, done.stderr
    (row,) = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    assert row[0] == "one.wav"
    before, after, ratio = map(float, row[2:5])
    assert abs(ratio - after / before) < 0.05 * ratio
    assert row[4] == row[5] == row[6]
    (written,) = json.loads(kept.read_text())["rows"]
    assert list(map(str, written.values())) == row
    assert written["wall_s_after"] > 0


def test_a_command_that_fails_is_told(tmp_path: Path) -> None:
    done = compare(TFX, TFX, tmp_path / "none.wav", "--runs", 1)
    assert done.returncode == 1
    assert "none.wav cannot be opened" in done.stderr
