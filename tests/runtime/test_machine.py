"""What tfx has to know of the machine: also of one whose user has no home, and of one without a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

from tfswa.runtime import machine

FOLDERS = (machine.user_cache, machine.user_state, machine.user_config)


def test_folders_of_a_user_are_where_xdg_has_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CACHE", "STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    assert [find().parent.name for find in FOLDERS] == ["CACHE", "STATE", "CONFIG"]


def test_a_user_without_a_home_has_places_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(path: str) -> str:
        return path  # as Python does where neither HOME nor the list of users knows

    for name in ("CACHE", "STATE", "CONFIG"):
        monkeypatch.delenv(f"XDG_{name}_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lost)
    for find in FOLDERS:
        place = find()
        assert place.is_absolute()
        with pytest.raises(OSError, match="Not a directory"):  # not even for root, as in a bare container
            place.mkdir(parents=True)


def test_a_home_that_cannot_be_used_costs_only_time(tmp_path: Path) -> None:
    """A file where the cache should be: nothing can be kept, and a song is separated all the same."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the embedded model")
    import numpy as np
    import soundfile

    soundfile.write(tmp_path / "song.wav", np.zeros((4000, 2), np.float32), 44_100)
    (tmp_path / ".cache").write_text("in the way")
    (tmp_path / ".local").write_text("in the way")
    (tmp_path / ".config").write_text("in the way")
    done = subprocess.run(
        [sys.executable, "-m", "tfswa.runtime", "separate", "song.wav", "--threads", "1"],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "separated" / "song" / "vocals.wav").is_file()


class TestGpuName:
    @pytest.fixture
    def answer(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        """A program ``nvidia-smi`` that says what a test has it say, on a machine with device 0."""
        place = tmp_path / "nvidia-smi"
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        exists = Path.exists
        monkeypatch.setattr(
            Path,
            "exists",
            lambda path: str(path) == "/dev/nvidia0" or ("/dev/" not in str(path) and exists(path)),
        )
        return place

    def test_is_the_drivers(self, answer: Path) -> None:
        answer.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3'\n")
        answer.chmod(0o755)
        assert machine.gpu_name() == "NVIDIA H100 80GB HBM3"
        assert machine.gpu_name(1) is None

    def test_a_driver_that_fails_still_has_a_gpu(self, answer: Path) -> None:
        answer.write_text("#!/bin/sh\nexit 9\n")
        answer.chmod(0o755)
        assert machine.gpu_name() == "GPU 0"
