"""``tfx evaluate``: what a user types and sees, and Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from waiting import alive, until

from tfswa.runtime.cli import main
from tfswa.runtime.errors import BackendUnavailable
from tfswa.runtime.evaluation import boxplot, song_run
from tfswa.runtime.evaluation.scores import FIGURES
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.stream.separator import Separator

Tfx = Callable[..., tuple[str, str]]


@pytest.fixture
def ready() -> None:
    try:
        boxplot.require_boxplot()
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def tfx(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    network_bundle: Bundle,
) -> Tfx:
    """``tfx("--data", root, code=0)``: evaluate a tiny network in a folder of its own; stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, code: int = 0) -> tuple[str, str]:
        given = ("evaluate", network_bundle.path.name, *arguments, "--backend", "torch", "--threads", "1")
        monkeypatch.setattr(sys, "argv", ["tfx", *map(str, given)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        assert caught.value.code == code, printed.err
        return printed.out, printed.err

    return run


@pytest.mark.parametrize(
    ("words", "how"), [((), {}), (("--overlap", "2"), {"overlap": 2}), (("--wiener", "1"), {"wiener": 1})]
)
def test_rules_and_filters_of_separate_are_measured(
    tfx: Tfx, song_root: Path, tmp_path: Path, words: tuple[str, ...], how: dict[str, Any]
) -> None:
    where = ("--data", song_root, "--songs", "A", "--no-baselines", "--no-plot", "--estimates", "stems")
    out, _ = tfx(*where, *words, "--json")
    identity = json.loads(out)["identity"]
    assert (identity["overlap"], identity["wiener"]) == (str(how.get("overlap", 1)), how.get("wiener", 0))
    parts = [soundfile.read(path, dtype="float64")[0] for path in (song_root / "A").glob("*.wav")]
    mixture = np.sum(parts, axis=0).T.astype(np.float32)
    with Separator("network.tfx", backend="torch", **how) as separator:
        right = dict(zip(separator.stems, separator.separate(mixture), strict=True))
    with Separator("network.tfx", backend="torch") as separator:
        plain = dict(zip(separator.stems, separator.separate(mixture), strict=True))
    for path in (tmp_path / "stems").rglob("*.wav"):
        found = soundfile.read(path, dtype="float32")[0].T
        np.testing.assert_allclose(found, right[path.stem], atol=1e-5)
        assert not how or np.abs(found - plain[path.stem]).max() > 1e-4
    _, err = tfx(*where, "--overlap", "4", code=2)
    assert f"overlap {how.get('overlap', 1)}, now 4" in err
    assert err.endswith("add --force to compute it anew, or choose another -o\n")


@pytest.mark.slow
def test_a_table_then_json_from_what_is_there(tfx: Tfx, ready: None, song_root: Path, tmp_path: Path) -> None:
    out, err = tfx("--data", song_root, "--songs", "B", "--songs", "A", "--jobs", 2)
    assert "SDR c" in out
    assert "SDR u" in out
    assert "NaN" not in out.replace("-", "")
    (silence,) = [line for line in out.splitlines() if line.startswith("vocals") and "silence" in line]
    assert silence.split()[2:] == ["-", "-", "-", "-", "-", "0.00", "-"]
    lines = err.splitlines()
    assert [line.split()[0] for line in lines] == ["1/2", "2/2"]
    assert "SDR u vocals" in lines[0]
    assert lines[0].endswith("left")
    out, err = tfx("--data", song_root, "--songs", "B", "--songs", "A", "--json")
    assert err == ""
    printed = json.loads(out)
    assert printed["reused"] == printed["songs"] == 2
    assert set(FIGURES) <= set(printed["scores"][0])
    assert Path(printed["files"]["csv"]) == Path("evaluation/network/results.csv")
    assert (tmp_path / printed["files"]["plot"]).is_file()
    _, err = tfx("--data", song_root, "--songs", "A", "--no-baselines", code=2)
    assert "baselines True, now False: add --force" in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_note_is_told_once(
    tfx: Tfx, song_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    songs = shutil.copytree(song_root, tmp_path / "songs")
    path = next(songs.rglob("A*/vocals.wav"))
    audio, rate = soundfile.read(path)
    soundfile.write(path, audio[:-100], rate)
    _, err = tfx("--data", songs, "--songs", "A", "--no-plot", "--json")
    assert err.count("its sources differ in length: vocals has") == 1
    assert "differ in length" not in caplog.text


class TestRefusals:
    def test_no_ffmpeg(self, tfx: Tfx, song_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("museval", reason="museval is not installed")
        monkeypatch.setattr(shutil, "which", lambda name: None)
        _, err = tfx("--data", song_root, "--no-plot", "--bsseval", "museval", code=4)
        assert err == (
            "tfx: museval needs ffmpeg and ffprobe on PATH: install ffmpeg (apt-get install ffmpeg)\n"
        )
        assert not Path("evaluation").exists()

    def test_no_matplotlib(self, tfx: Tfx, song_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        _, err = tfx("--data", song_root, code=4)
        assert "pip install 'tfswa[plots]', or --no-plot" in err

    def test_a_song_that_cannot_be_decoded_leaves_nothing(self, tfx: Tfx, tmp_path: Path) -> None:
        (tmp_path / "songs" / "A").mkdir(parents=True)
        for name in ("vocals", "drums"):
            (tmp_path / "songs" / "A" / f"{name}.wav").touch()
        _, err = tfx("--data", tmp_path / "songs", code=1)
        assert "is empty (0 bytes)" in err
        assert err.count("\n") == 1
        assert not Path("evaluation").exists()

    def test_no_data(self, tfx: Tfx) -> None:
        _, err = tfx("--data", "nowhere", code=1)
        assert err.startswith("tfx: nowhere cannot be opened")

    def test_no_musdb(self, tfx: Tfx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MUSDB_PATH", str(tmp_path / "gone"))
        _, err = tfx("--data", "musdb", code=2)
        assert "`tfx data musdb --download" in err
        assert err.count("\n") == 1


@pytest.mark.slow
def test_ctrl_c_leaves_no_half_file_and_no_process(
    ready: None, network_bundle: Bundle, song_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tfswa.runtime", "evaluate", network_bundle.path, "--data", song_root]
    command += ["-o", out, "--backend", "torch", "--threads", "1", "--jobs", "2", "--no-plot"]
    run = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    until(lambda: run.poll() is not None or list(out.glob(".*/*/estimates.npy")))
    assert run.poll() is None, run.stderr.read() if run.stderr else b""
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: the whole group
    _, err = run.communicate(timeout=600)
    assert run.returncode == 130
    # Python's resource tracker, a process of its own, may say after us what it cleaned up.
    ours = [line for line in err.decode().splitlines() if line.startswith("tfx: ")]
    assert ours == ["tfx: interrupted"]
    assert "Traceback" not in err.decode()
    left = [path for path in out.rglob("*") if path.is_file()]
    assert all(path.parent.name == "songs" and not path.name.startswith(".") for path in left)
    assert not list(out.glob(".*"))
    until(lambda: not alive(run.pid), said=lambda: alive(run.pid))  # the resource tracker ends by itself


def test_a_worker_that_dies_is_said(
    tfx: Tfx, song_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(song_run, "score_song", os._exit)
    monkeypatch.setattr(song_run.Workers, "submit", lambda self, run, *_, **__: self._pool.submit(run, 9))
    out, err = tfx("--data", song_root, "--no-plot", "--jobs", 2, "--json", code=1)
    printed = json.loads(out)
    assert sorted(entry["input"] for entry in printed["errors"]) == ["A", "B", "C"]
    why = "was killed, also when it was the only one, most likely for want of memory: close other programs"
    assert all(entry["error"].endswith(why) for entry in printed["errors"])
    assert err.splitlines()[-1] == "tfx: 3 of 3 songs failed"
    assert len(err.splitlines()) == 4
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.slow
def test_a_worker_that_dies_once_costs_nothing(
    tfx: Tfx, song_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, calls = song_run.Workers.submit, []

    def once(self: song_run.Workers, run: object, *arguments: object, **named: object) -> object:
        calls.append(run)
        if len(calls) == 1:
            return submit(self, os._exit, 9)
        return submit(self, run, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(song_run.Workers, "submit", once)
    out, _ = tfx("--data", song_root, "--no-plot", "--no-baselines", "--jobs", 2, "--json")
    assert (json.loads(out)["songs"], json.loads(out)["errors"]) == (3, [])


def test_a_bad_song_is_one_line_and_missing_from_the_report(
    tfx: Tfx, song_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(song_root, tmp_path / "data"))
    (data / "B" / "vocals.wav").write_text("no audio")
    out, err = tfx("--data", data, "--no-plot", "--no-baselines", "--jobs", 1, code=1)
    assert "2 songs of 3" in out
    assert "missing from all figures, as they failed: B\n" in out
    lines = [line for line in err.splitlines() if line.startswith("tfx: ")]
    assert len(lines) == 2
    assert "B/vocals.wav cannot be decoded" in lines[0]
    assert lines[1] == "tfx: 1 of 3 songs failed"
    out, _ = tfx("--data", data, "--no-plot", "--no-baselines", "--json", code=1)
    printed = json.loads(out)
    assert (printed["songs"], printed["reused"]) == (2, 2)
    assert [entry["input"] for entry in printed["errors"]] == ["B"]


def test_ctrl_c_while_workers_start_is_the_parents_affair() -> None:
    script = """
import os, signal, time
from tfswa.runtime.evaluation.pool import Workers

for delay in (0.0, 0.01, 0.03, 0.06, 0.1, 0.2):
    try:
        with Workers(2) as workers:
            futures = [workers.submit(time.sleep, 60) for _ in range(2)]
            time.sleep(delay)
            os.killpg(0, signal.SIGINT)
            time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted")
"""
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, start_new_session=True, timeout=600)
    assert (run.stdout, run.stderr, run.returncode) == ("interrupted\n" * 6, "", 0)


def test_workers_have_one_thread_each(ready: None) -> None:
    from tfswa.runtime.evaluation.pool import THREAD_VARIABLES, Workers

    with Workers(1) as workers:
        found = [workers.submit(os.getenv, name).result() for name in THREAD_VARIABLES]
        loaded = workers.submit(eval, "'numpy' in __import__('sys').modules").result()
    assert found == ["1"] * len(THREAD_VARIABLES)
    assert not loaded  # or it would have started its threads before it was told
