"""``tfx export`` and ``tfx build-engine``: what is printed where, and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from tfswa.export.cli import build_engine, export
from tfswa.runtime.errors import OutputExists, TfxError, UsageError
from tfswa.runtime.model.opening import BundleModel

pytest.importorskip("torch", reason="torch is not installed: export needs it")


def invoke(command: click.Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def failure(result: Result) -> TfxError:
    assert isinstance(result.exception, TfxError)
    assert result.stdout == ""
    return result.exception


def test_torchscript_into_a_copy_as_json(plain: BundleModel, tmp_path: Path) -> None:
    output = tmp_path / "new.tfx"
    result = invoke(export, plain.bundle.path, "--format", "torchscript", "-o", output, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["file"] == str(output / "model.ts")
    assert report["bundle"] == str(output)
    assert report["bytes"] == (output / "model.ts").stat().st_size
    assert (report["format"], report["opset"]) == ("torchscript", None)
    assert set(report["snr_db"]) == {"vocals", "accompaniment"}
    assert all(value is None or value >= 80 for value in report["snr_db"].values())
    assert result.stderr == f"exporting {plain.bundle.path} to torchscript in fp32 ...\n"


def test_it_is_quiet_and_gives_the_same_bytes_again(
    exported: BundleModel,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    again = tmp_path / "again.tfx"
    result = invoke(export, exported.name, "-o", again)
    assert result.exit_code == 0, result.output
    assert result.stderr == f"exporting {exported.name} to onnx in fp32 ...\n"
    where, *stems = result.stdout.splitlines()
    assert where.startswith(f"{again}/model.onnx  0.")
    assert [line.split(":")[0].strip() for line in stems] == ["vocals", "accompaniment"]
    assert all(line.endswith("against eager") for line in stems)
    assert capfd.readouterr() == ("", "")  # past click: what libraries print
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]
    assert (again / "model.onnx").read_bytes() == (exported.bundle.path / "model.onnx").read_bytes()


def test_what_is_there_already_exits_2(exported: BundleModel) -> None:
    error = failure(invoke(export, exported.name))
    assert (type(error), error.exit_code) == (OutputExists, 2)


def test_no_such_model_exits_2() -> None:
    command = [sys.executable, "-m", "tfswa.runtime", "export", "nothing-here"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tfx: no model 'nothing-here'")


@pytest.mark.parametrize("command", [export, build_engine])
def test_a_folder_that_is_no_bundle(command: click.Command, tmp_path: Path) -> None:
    error = failure(invoke(command, tmp_path))
    assert error.exit_code == 1
    assert "not a bundle" in str(error)


def test_an_opset_for_torchscript_is_refused(plain: BundleModel) -> None:
    error = failure(invoke(export, plain.name, "--format", "torchscript", "--opset", "20"))
    assert isinstance(error, UsageError)


def test_an_audio_file_that_is_missing_exits_1_and_writes_nothing(plain: BundleModel, tmp_path: Path) -> None:
    error = failure(invoke(export, plain.name, "--audio", tmp_path / "none.wav"))
    assert error.exit_code == 1
    assert not (plain.bundle.path / "model.onnx").exists()


@pytest.mark.parametrize("text", ["1", "1,2", "a,b,c", "1,2,3,4"])
def test_batches_that_are_not_three_numbers(exported: BundleModel, text: str) -> None:
    result = invoke(build_engine, exported.name, "--batch", text)
    assert result.exit_code == 2
    assert "is not three numbers" in result.stderr


@pytest.mark.trt
def test_an_engine_from_the_command_line(exported: BundleModel) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: engines need it")
    import torch

    first = invoke(build_engine, exported.name, "--flavor", "rtx")
    assert first.exit_code == 0, first.output
    assert ", fp32, portable: built" in first.stdout or ", fp32, compute capability" in first.stdout
    assert ("not run: no CUDA device here" in first.stdout) is not torch.cuda.is_available()
    assert first.stderr.startswith("building with tensorrt_rtx")
    again = invoke(build_engine, exported.name, "--flavor", "rtx", "--json")
    report = json.loads(again.stdout)
    assert report["cached"] is True
    assert report["gpu_here"] is torch.cuda.is_available()
    assert Path(report["file"]).stat().st_size == report["bytes"]
    assert again.stderr == ""
    assert "in the bundle already" in invoke(build_engine, exported.name, "--flavor", "rtx").stdout
