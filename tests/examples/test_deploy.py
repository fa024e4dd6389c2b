"""The host without tfx gives what tfx gives."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tfswa.runtime.metrics import snr_db
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.songs.example import synthetic_sources
from tfswa.runtime.stream.separator import Separator

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")

EXAMPLE = Path(__file__).parents[2] / "examples" / "deploy.py"
# Both run one graph on planes of the same bits; the inverse transform differs: 141 dB here, of vocals.
LEAST_DB = 130.0


def test_it_imports_nothing_of_ours() -> None:
    tree = ast.parse(EXAMPLE.read_text())
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert modules <= {
        "json",
        "math",
        "sys",
        "pathlib",
        "numpy",
        "onnxruntime",
        "scipy",
        "scipy.fft",
        "soundfile",
    }


@pytest.mark.parametrize("seconds", [0.5, 7.0])  # one chunk, and two with a seam
def test_it_gives_what_tfx_gives(tmp_path: Path, seconds: float) -> None:
    mixture = 0.5 * np.sum(list(synthetic_sources(1, seconds).values()), axis=0, dtype=np.float32)
    soundfile.write(tmp_path / "song.wav", mixture.T, 44_100, subtype="FLOAT")
    model = open_model("demo")
    graph = model.file("model.onnx")
    done = subprocess.run(
        [sys.executable, EXAMPLE, graph, "song.wav", "out"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with Separator(model, backend="ort") as separator:
        expected = separator.separate(mixture)
    for index, stem in enumerate(model.spec.stems):
        estimate, _ = soundfile.read(tmp_path / "out" / f"{stem}.wav", dtype="float32")
        value = snr_db(expected[index], estimate.T)
        assert value is not None
        assert value > LEAST_DB
