"""Two installed versions' networks compared, and transforms beside each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TFX = Path(sys.executable).with_name("tfx")


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, SCRIPTS / name, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=600)


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]


@pytest.mark.slow
def test_a_row_for_a_model() -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the model")
    done = run("compare_bench.py", TFX, TFX, "demo,demo", "--runs", 1, "--rounds", 1)
    assert done.returncode == 0, done.stderr
    ((name, runs, before, after, ratio, least, greatest),) = cells(done.stdout)
    assert (name, runs) == ("demo, demo", "1")
    assert abs(float(ratio) - float(before) / float(after)) < 0.01 * float(ratio)
    assert ratio == least == greatest


def test_a_command_that_fails_is_told() -> None:
    done = run("compare_bench.py", TFX, TFX, "none.tfx", "--runs", 1)
    assert done.returncode == 1
    assert "none.tfx" in done.stderr
    assert "Traceback" not in done.stderr


def test_transforms_beside_the_first() -> None:
    done = run("transform_speed.py", "2048/512", "2048/1024", "--rounds", 5)
    assert done.returncode == 0, done.stderr
    first, second = cells(done.stdout)
    assert first[0] == "2048/512"
    assert set(first[2:]) == {"1.0"}
    assert float(second[2]) < 1.0  # half of the frames
    assert run("transform_speed.py", "2048-512").returncode == 2
