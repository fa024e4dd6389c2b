"""The pytest plug-in: which tests a bundle gets, what fails and what is skipped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from parity_fakes import CHUNK, HYPER, STFT

pytest.importorskip("torch", reason="torch is not installed: the reference is an eager network")


PLUGIN = "tfswa.runtime.pytest_plugin"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tfswa.train.backend import new_bundle

    path = tmp_path_factory.mktemp("plugin") / "tiny.tfx"
    new_bundle("tfswa_lite", path, hyper=HYPER, stft=STFT, chunk=CHUNK)
    return path


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """pytest as a team would run it, in a folder of its own."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", *map(str, arguments)]
    command += ["-p", PLUGIN] * any("--tfx" in str(argument) for argument in arguments)
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


def test_a_test_for_each_backend_stem_and_item(bundle: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "--tfx-bundle", bundle, "--tfx-backend", "torch", "-v")
    assert done.returncode == 0, done.stdout
    assert "torch fp32-synthetic, seed 0-vocals PASSED" in done.stdout
    assert "torch fp32-1 sample-accompaniment PASSED" in done.stdout
    for level in ("graph", "axes", "finite"):
        assert f"torch fp32-{level} PASSED" in done.stdout
    assert "failed" not in done.stdout


def test_what_does_not_reach_its_gate_fails_by_name(bundle: Path, tmp_path: Path) -> None:
    gates = tmp_path / "gates.toml"
    gates.write_text("[fp32]\nsnr_db = 80\n[fp32.stems.vocals]\nsnr_db = 500\n")
    own = tmp_path / "test_own.py"
    own.write_text("def test_own():\n    pass\n")
    options = ("--tfx-bundle", bundle, "--tfx-backend", "torch", "--tfx-gates", gates)
    done = run(tmp_path, *options, "-k", "own or synthetic")
    assert done.returncode == 1
    assert "1 failed, 2 passed" in done.stdout
    assert "signal: SNR in dB of vocals on synthetic, seed 0 is" in done.stdout
    assert "the limit is 500" in done.stdout
    assert "Traceback" not in done.stdout


def test_what_cannot_run_is_skipped_with_its_reason(bundle: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "--tfx-bundle", bundle, "-k", "ort and finite")
    assert done.returncode == 0, done.stdout
    assert "holds no onnx artifact in fp32" in done.stdout
    named = run(tmp_path, "--tfx-bundle", bundle, "--tfx-backend", "ort", "-k", "finite")
    assert named.returncode == 1  # asked for and not got is no pass
    assert "holds no onnx artifact in fp32" in named.stdout


def test_what_is_no_bundle_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "--tfx-bundle", "none.tfx")
    assert done.returncode == 4
    assert "ERROR: --tfx-bundle none.tfx: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_does_not_name_it_does_not_load_it(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text(
        "import sys\n\ndef test_own():\n    assert not any(name[:5] == 'tfswa' for name in sys.modules)\n"
    )
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout
