"""The newcomer's path: the embedded model on the example song, and the runtime without torch."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tfswa.runtime.metrics import sdr_db
from tfswa.runtime.model.opening import model_names
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.songs.loading import example_stem_file, load_stem_file

ROOT = Path(__file__).resolve().parents[2]
BARE = ROOT / ".venv-ort" / "bin" / "python"  # scripts/test installs '.[ort]' there and nothing else
# What a newcomer hears first; 1.5 dB is the least that the embedded model is shipped with.
LEAST_VOCALS_SDR_DB = 1.5


@pytest.fixture(scope="module")
def song():
    path = example_stem_file()
    if path is None:
        pytest.skip("stempeg is not installed")
    return load_stem_file(path, ModelSpec("any", ("vocals", "accompaniment")))


@pytest.mark.slow
def test_quickstart_prints_its_table_and_draws(tmp_path: Path, song) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "quickstart.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    figures = dict(re.findall(r"^(vocals|accompaniment) +(-?[\d.]+)", done.stdout, re.MULTILINE))
    assert float(figures["vocals"]) >= LEAST_VOCALS_SDR_DB
    for stem in ("vocals", "accompaniment"):
        estimate, _ = soundfile.read(tmp_path / f"{stem}.wav", dtype="float32")
        assert estimate.shape == song.mixture.T.shape
        gain = 10 ** (float(re.findall(r"\((-[\d.]+) dB, so that none clips\)", done.stdout)[0]) / 20)
        measured = sdr_db(song.stems[stem], estimate.T / gain)
        # Printed with two decimals, written with 16 bits, and the gain is said with one decimal: 0.6 %.
        assert float(figures[stem]) == pytest.approx(measured, abs=0.03)
    assert "x real time" in done.stdout
    assert (tmp_path / "spectrograms.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_separates_where_no_torch_is_installed(tmp_path: Path, song) -> None:
    if not BARE.exists():
        pytest.skip(f"{BARE.parent.parent.name} is missing: scripts/test makes it")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    absent = subprocess.run([str(BARE), "-c", "import torch"], capture_output=True, cwd=tmp_path)
    assert absent.returncode != 0, "the bare environment has torch: the test would prove nothing"
    soundfile.write(tmp_path / "song.flac", song.mixture.T, 44_100, subtype="PCM_24")
    done = subprocess.run(
        [str(BARE), "-m", "tfswa.runtime", "separate", "song.flac", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    entry = json.loads(done.stdout)["files"][0]
    for path in entry["outputs"].values():
        assert soundfile.info(tmp_path / path).frames == song.mixture.shape[1]


def test_embedded_model_is_small() -> None:
    folder = model_names()["demo"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10e6


def test_stems_sum_to_the_mixture(song) -> None:
    from tfswa.runtime.model.opening import open_model
    from tfswa.runtime.stream.separator import Separator

    with Separator(open_model("demo"), backend="ort") as separator:
        stems = separator.separate(song.mixture)
    np.testing.assert_allclose(stems.sum(axis=0), song.mixture, atol=1e-5)


@pytest.mark.slow
def test_what_quickstart_writes_plays_and_what_it_says_next_is_there(tmp_path: Path) -> None:
    out = tmp_path / "a folder"
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "quickstart.py"), str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    peaks = [np.abs(soundfile.read(out / f"{name}.wav")[0]).max() for name in ("mixture", "vocals")]
    assert max(peaks) < 1.0
    assert re.search(r"\(-\d+\.\d dB, so that none clips\)", done.stdout)
    (command,) = re.findall(r"tfx (separate .*) -o separated", done.stdout)
    assert shlex.split(command) == ["separate", str(out / "mixture.wav")]
    assert Path(shlex.split(done.stdout.partition("or write ")[2])[0]).parent == Path(sys.executable).parent


def test_quickstart_says_what_it_is_at_before_each_step() -> None:
    lines = (ROOT / "scripts" / "quickstart").read_text().splitlines()
    told = [line for line in lines if line.startswith("echo ")]
    assert [line[6] for line in told] == list("1234")
