"""Every graph passes polygraphy's own checks, and the line that parity prints does what it says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("polygraphy", reason="polygraphy is not installed: it is the judge here")

from tfswa.runtime.commands.parity import parity
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.parity.polygraphy import command_line, layers_line

BIN = str(Path(sys.executable).parent)


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(
        line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_graphs_pass_lint(low_bundle: Path, tmp_path: Path, precision: str) -> None:
    name = "model.onnx" if precision == "fp32" else f"model.{precision}.onnx"
    done = shell(f"polygraphy check lint {low_bundle / name}", tmp_path)
    faults = [line for line in done.stdout.splitlines() if line.startswith("[E] LINT")]
    if precision != "bf16":
        assert (done.returncode, faults) == (0, []), done.stdout
    else:  # it judges by numpy and by ONNX Runtime on the CPU, which have no bfloat16: that, and nothing else
        lacks = ("No corresponding Numpy type for Tensor Type. bfloat16", "Could not find an implementation")
        assert all(any(lack in line for lack in lacks) for line in faults), done.stdout


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx", "model.bf16.onnx"])
def test_graphs_can_be_inspected(low_bundle: Path, tmp_path: Path, name: str) -> None:
    done = shell(f"polygraphy inspect model {low_bundle / name}", tmp_path)
    assert done.returncode == 0, done.stdout
    assert "{mixture [dtype=float32, shape=('batch', 4, 16, 256)]}" in done.stdout
    assert "{stems [dtype=float32, shape=('batch', 2, 4, 16, 256)]}" in done.stdout


def test_the_line_that_parity_prints_runs_and_can_fail(low_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "low.tfx"
    shutil.copytree(low_bundle, path)
    result = CliRunner().invoke(parity, [str(path), "--backend", "ort:fp16", "--quick"])
    assert result.exit_code == 0, result.output
    line = result.stdout.partition("the graph alone, by polygraphy: ")[2].splitlines()[0]
    done = shell(line, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(min required: 45 dB) | PASSED" in done.stdout
    assert shell(line.replace("--snr-threshold 45", "--snr-threshold 145"), tmp_path).returncode != 0


def test_the_line_for_an_engine_and_where_there_is_none(low_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "low.tfx"
    shutil.copytree(low_bundle, path)
    bundle = Bundle.open(path)
    for flavor in ("rtx", "tensorrt"):
        bundle.add(f"engines/{flavor}.engine", Path.touch, kind="engine", details={"flavor": flavor})
        line = command_line(bundle, f"engines/{flavor}.engine", 36)
        assert line is not None
        assert f"{flavor}.engine --trt --model-type engine --input-shapes" in line
        assert ("POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy" in line) == (flavor == "rtx")
    for artifact in ("model.onnx", "model.ts", "nothing"):
        assert command_line(bundle, artifact, 80) is None


def test_the_line_of_layers_compares_every_value(exported_bundle: Path, tmp_path: Path) -> None:
    line = layers_line(exported_bundle / "model.onnx", open_model(exported_bundle).spec, 60.0)
    assert " --trt " in line
    done = shell(line.replace(" --trt ", " --onnxrt "), tmp_path)  # TensorRT needs a GPU
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Comparing Output") > 100
