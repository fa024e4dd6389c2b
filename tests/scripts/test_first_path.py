"""The path of a first-time reader, in the environment that the tests run in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "first_path"


def first_path(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, **more},
    )


@pytest.mark.slow
def test_it_comes_to_its_end(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed: the path trains")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: the path exports")
    folder = tmp_path / "a new folder"
    done = first_path("--here", folder)
    assert done.returncode == 0, done.stderr
    assert [line[:3] for line in done.stdout.splitlines()] == [f"{number}/7" for number in range(1, 8)]
    figures = re.findall(r"^(\w+): (identical|[\d.]+ dB)$", (folder / "7.log").read_text(), re.M)
    assert [name for name, _ in figures] == ["vocals", "accompaniment"]


def test_a_step_that_fails_ends_it_and_is_shown(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho this went wrong >&2\nexit 7\n")
    program.chmod(0o755)
    done = first_path("--here", tmp_path / "new", PYTHON=str(program))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "1/7 installed already: FAILED: install_tfx\nthis went wrong\n"


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    done = first_path("--here", tmp_path)
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (2, "", [])
    assert "exists" in done.stderr
    assert first_path("--hear").returncode == 2
