"""The steps of ``examples/Dockerfile``, in their order, in a fresh environment instead of a container."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "examples" / "Dockerfile"
LEFT_OUT = shutil.ignore_patterns(".*", "build", "out", "runs", "tests")


def steps() -> list[tuple[str, str]]:
    """Instruction and the rest of each line."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def test_its_steps_are_those_that_are_tried_here() -> None:
    assert [name for name, _ in steps()] == ["FROM", "COPY", "RUN", "WORKDIR", "ENTRYPOINT", "CMD"]
    found = dict(steps())
    assert found["FROM"].startswith("python:3.")
    assert (found["COPY"], found["WORKDIR"]) == (". /src", "/work")


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TFX_LONG") != "1", reason="TFX_LONG is not 1: an environment is made")
def test_its_steps_give_a_tfx_that_separates(tmp_path: Path) -> None:
    found = dict(steps())
    shutil.copytree(ROOT, tmp_path / "src", ignore=LEFT_OUT)  # COPY
    (tmp_path / "work").mkdir()
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {"HOME": str(tmp_path), "PATH": f"{tmp_path / 'env' / 'bin'}:{os.environ['PATH']}"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("sh", "-ec", found["RUN"].replace("/src", str(tmp_path / "src")))
    assert not (tmp_path / "src").exists()
    (program,) = json.loads(found["ENTRYPOINT"])
    assert "separate" in run(program, *json.loads(found["CMD"]))
    run(program, "data", "example", "-o", "songs")
    run(program, "separate", "songs/one/mixture.wav", "-o", "stems")
    assert (tmp_path / "work" / "stems" / "mixture" / "vocals.wav").stat().st_size > 0
