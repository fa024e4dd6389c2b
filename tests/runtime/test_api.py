"""The public face of the package: twelve names, what they take, and what importing it does to a process."""

import os
import pydoc
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import soundfile

import tfswa.runtime
from tfswa.runtime import BackendOptions, Separator, TfxError, open_model

ORT = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the embedded model")


class TestNames:
    def test_dir_lists_the_public_ones_and_all_are_there(self) -> None:
        assert dir(tfswa.runtime) == sorted(tfswa.runtime.__all__)
        assert {"Separator", "open_model", "BackendOptions", "FileResult", "errors"} <= set(
            dir(tfswa.runtime)
        )
        for name in dir(tfswa.runtime):
            assert getattr(tfswa.runtime, name) is not None
        with pytest.raises(AttributeError, match="no attribute 'seperator'"):
            tfswa.runtime.seperator  # noqa: B018

    def test_help_shows_them(self) -> None:
        text = pydoc.plain(pydoc.render_doc(tfswa.runtime))
        for words in ("class Separator", "class FileResult", "open_model(", "from tfswa.runtime import"):
            assert words in text

    def test_the_version_is_the_distributions(self) -> None:
        assert tfswa.runtime.__version__ == version("tfswa")

    def test_importing_loads_no_numpy(self) -> None:
        code = "import sys, tfswa.runtime as r; dir(r); r.__version__; print('numpy' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "False\n"


class TestSeparator:
    def test_takes_a_models_name_and_paths_as_text(self, tmp_path: Path) -> None:
        mixture = np.random.default_rng(0).standard_normal((2, 5000)).astype(np.float32) * 0.1
        soundfile.write(tmp_path / "song.wav", mixture.T, 44_100, subtype="FLOAT")
        with Separator("demo", options=BackendOptions(threads=1)) as separator:
            stems = separator.separate(mixture.astype(np.float64))
            result = separator.separate_file(str(tmp_path / "song.wav"), str(tmp_path / "stems"))
            some = {"vocals": str(tmp_path / "v.flac")}
            separator.separate_file(str(tmp_path / "song.wav"), some, format="flac")
        assert list(result.written.paths) == list(open_model("demo").spec.stems)
        for stem, expected in zip(result.written.paths, stems, strict=True):
            found, _ = soundfile.read(tmp_path / "stems" / f"{stem}.wav", dtype="float32")
            np.testing.assert_array_equal(found.T, expected)
        assert (tmp_path / "v.flac").is_file()
        with pytest.raises(TfxError, match="no model 'dmeo', did you mean 'demo'"):
            Separator("dmeo")


IMPORT = """
import tfswa.{package}
from tfswa.runtime.backends import import_library
import_library({library!r}, backend="any")
"""
REPORTS = """
import os
try:
    import openvino_telemetry
    found = True
except ImportError:
    found = False
print(os.environ.get("ORT_DISABLE_TELEMETRY"), found)
"""


class TestTelemetry:
    @pytest.mark.parametrize("library", ["onnxruntime", "openvino"])
    @pytest.mark.parametrize("set_by_user", [None, "0"])
    def test_is_off_when_a_library_is_imported(
        self, tmp_path: Path, library: str, set_by_user: str | None
    ) -> None:
        """A stand-in for the library says what it sees at that moment."""
        (tmp_path / f"{library}.py").write_text(REPORTS)
        (tmp_path / "openvino_telemetry.py").touch()
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        environment.pop("ORT_DISABLE_TELEMETRY", None)
        if set_by_user is not None:
            environment["ORT_DISABLE_TELEMETRY"] = set_by_user
        done = subprocess.run(
            [sys.executable, "-c", IMPORT.format(package="runtime", library=library)],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            timeout=600,
        )
        assert done.stdout == f"{set_by_user or '1'} False\n"

    def test_openvino_itself_reports_to_nobody(self) -> None:
        pytest.importorskip("openvino", reason="openvino is not installed: what it imports is looked at")
        code = IMPORT.format(package="runtime", library="openvino") + (
            "import sys\nprint([name for name in sys.modules if name.startswith('openvino_telemetry')])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
        )
        assert done.stdout == "[]\n"
