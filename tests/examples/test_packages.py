"""The packages of ``examples``, built and installed as anybody's: every command takes them as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("my_family", "my_backend")
INSTALL = ("pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", "--no-compile")
LIMIT_S = 600  # ends what hangs
LISTED = ("family my_family of my-family", "backend my_backend of my-backend")  # by tfx doctor
TYPED = "examples.py"  # commands that tfx --help shows: names that a user may have given

Run = Callable[..., str]


def needs(*libraries: str) -> None:
    for library in libraries:
        pytest.importorskip(library, reason=f"{library} is not installed: this command needs it")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a place é")


@pytest.fixture(scope="module")
def site(place: Path) -> Path:
    """A folder that pip has installed both packages into, from copies of their sources."""
    # Not by find_spec: setuptools takes being asked for pip as pip's start, and gives its distutils up.
    have = {distribution.metadata["Name"] for distribution in distributions()}
    for tool in ("pip", "setuptools"):
        if tool not in have:
            pytest.skip(f"{tool} is not installed: it installs the packages")
    for name in PACKAGES:
        copy = place / "sources" / name  # a build writes beside its source
        copy.mkdir(parents=True)
        for file in (f"{name}.py", "pyproject.toml"):
            (copy / file).write_bytes((ROOT / "examples" / name / file).read_bytes())
        command = [sys.executable, "-m", *INSTALL, "--target", place / "site", copy]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, done.stderr
    return place / "site"


@pytest.fixture(scope="module")
def run(place: Path, site: Path) -> Run:
    """``run("separate", "song.wav")``: what tfx prints, in a process that finds the packages as installed."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH")))),
        "HOME": str(place),
        **{f"XDG_{kind}_HOME": str(place / kind) for kind in ("CACHE", "CONFIG", "STATE", "DATA")},
    }

    def call(*arguments: object) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "tfswa.runtime", *map(str, arguments)],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, f"tfx {' '.join(map(str, arguments))}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout

    return call


@pytest.fixture(scope="module")
def trained(run: Run) -> str:
    """A bundle of ``my_family``, trained for a few steps and exported to ONNX, beside ``songs``."""
    needs("torch", "onnxscript", "onnxruntime")
    run("data", "example", "-o", "songs")
    steps = ("optim.length=2", "optim.warmup=0", "run.pictures=false")
    family = ("model.family=my_family", "model.hyper={width=4}")
    run("train", "example", "data.root=songs", *family, *steps, "-o", "run")
    run("export", "run/best.tfx")
    return "run/best.tfx"


def stems_of(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.wav") if path.stat().st_size > 1000}


def test_no_line_of_ours_knows_them() -> None:
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    code = [path for folder in folders.values() for path in (ROOT / folder).rglob("*.py")]
    ours = [ROOT / "pyproject.toml", *(path for path in code if path.name != TYPED)]
    assert len(ours) > 100
    for path in ours:
        text = path.read_text(encoding="utf-8")
        assert not any(name in text for name in PACKAGES), path


@pytest.mark.slow
class TestFamily:
    def test_it_is_listed(self, run: Run) -> None:
        needs("torch")
        assert "my_family" in json.loads(run("models", "--json"))["families"]
        assert json.loads(run("inspect", "my_family", "--json"))["hyper"] == {"width": 8}

    def test_it_is_trained_and_exported(self, run: Run, trained: str, place: Path) -> None:
        run("export", trained, "--format", "torchscript")
        run("export", trained, "-o", "alone.onnx")
        files = {path.name for path in (place / trained).iterdir()}
        assert {"model.safetensors", "model.onnx", "model.ts"} <= files
        assert (place / "alone.onnx").is_file()

    def test_it_is_calibrated(self, run: Run, trained: str, place: Path) -> None:
        run("calibrate", trained, "--audio", "songs")
        assert (place / trained / "model.int8.onnx").is_file()

    @pytest.mark.trt
    def test_an_engine_is_built(self, run: Run, trained: str, place: Path) -> None:
        needs("tensorrt_rtx")
        run("build-engine", trained, "--flavor", "rtx")
        assert any((place / trained / "engines").iterdir())

    def test_it_separates_a_song(self, run: Run, trained: str, place: Path) -> None:
        run("separate", "songs/two/mixture.wav", "-m", trained, "--backend", "ort", "-o", "by ort")
        assert stems_of(place / "by ort") == {"vocals.wav", "accompaniment.wav"}

    def test_its_graph_is_shown_to_be_right(self, run: Run, trained: str) -> None:
        run("parity", trained, "--backend", "ort", "--audio", "songs/two", "--quick")


@pytest.mark.slow
class TestBackend:
    def test_it_is_listed_beside_the_family(self, run: Run) -> None:
        found = run("doctor")
        for words in LISTED:
            assert words in found

    def test_it_separates_as_others_do(self, run: Run, trained: str, place: Path) -> None:
        import numpy as np
        import soundfile

        from tfswa.runtime.metrics import snr_db

        heard = {}
        for backend in ("my_backend", "ort"):
            out = place / f"with {backend}"
            run("separate", "songs/two/mixture.wav", "-m", trained, "--backend", backend, "-o", out)
            assert stems_of(out) == {"vocals.wav", "accompaniment.wav"}
            heard[backend] = soundfile.read(next(out.rglob("vocals.wav")))[0]
        assert np.abs(heard["ort"]).max() > 0.01
        value = snr_db(heard["ort"], heard["my_backend"])
        assert value is None or value > 70  # files of 24 bits

    def test_it_is_measured_against_eager_torch(self, run: Run, trained: str) -> None:
        line = ("parity", trained, "--backend", "my_backend", "--audio", "songs/two", "--quick")
        assert "passed" in run(*line)
        certificates = json.loads(run("inspect", trained, "--json"))["parity"]
        assert ("my_backend", True) in {(found["backend"], found["passed"]) for found in certificates}

    def test_its_speed_is_measured(self, run: Run, trained: str) -> None:
        told = run("bench", trained, "--backend", "ort", "--backend", "my_backend", "--rounds", "1", "--json")
        assert {row["backend"] for row in json.loads(told)["rows"]} == {"ort", "my_backend"}

    def test_what_it_lacks_is_refused(self, run: Run, trained: str) -> None:
        song = ("separate", "songs/two/mixture.wav", "-m", trained, "--backend", "my_backend", "-o", "never")
        for option, value in (("--device", "cuda"), ("--precision", "fp16")):
            with pytest.raises(AssertionError, match="my_backend has") as caught:
                run(*song, option, value)
            assert f"{option} " in str(caught.value)
