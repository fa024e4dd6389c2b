"""The host without tfx gives what tfx gives."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from specs import SPECS

from tfswa.runtime.metrics import snr_db
from tfswa.runtime.model.opening import METADATA, Model, embed, open_model
from tfswa.runtime.model.spec import ModelSpec
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


def check(model: Model, graph: Path, folder: Path, mixture: NDArray[np.float32], least_db: float) -> None:
    """The example's stems of a mixture ``[C, N]`` are those of tfx, as many dB above the difference."""
    rate = model.spec.stft.sample_rate
    soundfile.write(folder / "song.wav", mixture.T, rate, subtype="FLOAT")
    done = subprocess.run(
        [sys.executable, EXAMPLE, graph, "song.wav", "out"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with Separator(model, backend="ort") as separator:
        expected = separator.separate(mixture)
    for index, stem in enumerate(model.spec.stems):
        estimate, _ = soundfile.read(folder / "out" / f"{stem}.wav", dtype="float32", always_2d=True)
        value = snr_db(expected[index], estimate.T)
        assert value is not None
        assert value > least_db


@pytest.mark.parametrize("seconds", [0.5, 7.0])  # one chunk, and two with a seam
def test_it_gives_what_tfx_gives(tmp_path: Path, seconds: float) -> None:
    mixture = 0.5 * np.sum(list(synthetic_sources(1, seconds).values()), axis=0, dtype=np.float32)
    model = open_model("demo")
    check(model, model.file("model.onnx"), tmp_path, mixture, LEAST_DB)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_whatever_the_specification(tmp_path: Path, spec: ModelSpec) -> None:
    graph = tmp_path / "any.onnx"
    save_shares(graph, spec)
    mixture = np.random.default_rng(0).uniform(-0.5, 0.5, (spec.channels, 9001)).astype(np.float32)
    # The graph multiplies; what differs is the rounding of the host's transform, in float32 there.
    check(open_model(graph), graph, tmp_path, mixture, 110.0)


def save_shares(path: Path, spec: ModelSpec) -> None:
    """A graph whose stems are the mixture times 0.5, 0.25, ..., in order of what the network gives."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: it makes the graph")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    shares = 0.5 ** np.arange(1, len(spec.outputs) + 1, dtype=np.float32).reshape(1, -1, 1, 1, 1)
    graph = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["mixture", "axis"], ["one"]),
            helper.make_node("Mul", ["one", "shares"], ["stems"]),
        ],
        "shares",
        [helper.make_tensor_value_info("mixture", kind, ["B", *spec.input_shape(1)[1:]])],
        [helper.make_tensor_value_info("stems", kind, ["B", *spec.output_shape(1)[1:]])],
        [
            onnx.numpy_helper.from_array(shares, "shares"),
            onnx.numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {METADATA: embed(spec, "fp32", "digest")})
    onnx.save(model, path)
