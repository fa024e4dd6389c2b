"""What bars show of names reaches the terminal escaped; what rich itself says to the terminal does not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
import soundfile
from terminal import terminal, text_file

from tfswa.runtime.bars import Bars
from tfswa.runtime.commands.evaluate import _Watch
from tfswa.runtime.commands.parity_progress import ParityProgress
from tfswa.runtime.commands.phases import Phases
from tfswa.runtime.commands.separate import _Bar
from tfswa.runtime.escape import escaped_output
from tfswa.runtime.evaluation.choices import EvaluationProgress
from tfswa.runtime.parity.pace import ParityStep

NAME, TOLD = "a\x07b[bold]c", "a\\x07b[bold]c"


def separate() -> None:
    with _Bar(NAME) as report:
        report(1.0, 2.0)


def evaluate() -> None:
    with _Watch(2) as watch:
        watch.report(EvaluationProgress(0, 2, NAME, 0.5))


def phases() -> None:
    with Phases() as bars:
        bars.step(NAME, 1, 2)


def parity() -> None:
    with ParityProgress() as progress:
        progress.show(ParityStep(1, 2, NAME, True, "ort fp32", None))


def importers() -> None:
    cli = pytest.importorskip("tfswa.train.importers.cli", reason="torch is not installed")
    with cli._progress(NAME, 10) as report:
        report(5)


def training() -> None:
    bar = pytest.importorskip("tfswa.train.bar", reason="torch is not installed")
    with bar.TrainingBar() as shown:
        shown.doing(NAME, 1, 2)


WORK = [separate, evaluate, phases, parity, importers, training]


def on_terminal(work: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a terminal gets of it, as a command runs it."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    with (
        monkeypatch.context() as patch,
        terminal(100) as (descriptor, screen),
        text_file(descriptor) as stream,
    ):
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        with escaped_output():
            work()
    return screen.text


@pytest.mark.parametrize("work", WORK)
def test_a_bar_is_drawn_and_not_spelled_out(
    work: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = on_terminal(work, monkeypatch)
    assert re.search(r"\x1b\[[0-9;]*m", text)  # the bar's colors, as the terminal wants them
    assert "\\x1b" not in text
    assert TOLD in text


def test_lines_printed_meanwhile_stand_above_the_bar_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        with Bars(transient=False) as bars:
            bars.add_task("separating", total=2)
            click.echo(f"tfx: {NAME}", err=True)
            click.echo("a stem\x1b]0;title\x07")
        click.echo("the\x1b[2J end")

    text = on_terminal(work, monkeypatch)
    assert f"tfx: {TOLD}" in text
    assert "a stem\\x1b]0;title\\x07" in text
    assert "the\\x1b[2J end" in text
    assert "\x07" not in text


def test_results_in_a_file_stay_in_it_while_a_bar_is_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with monkeypatch.context() as patch, terminal() as (descriptor, screen), text_file(descriptor) as stream:
        patch.setattr(sys, "stderr", stream)
        with Bars():
            click.echo("song.wav -> stems")
    assert capsys.readouterr().out == "song.wav -> stems\n"
    assert "song.wav" not in screen.text


@pytest.mark.parametrize("work", WORK)
def test_a_name_is_escaped(
    work: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    work()
    told = capsys.readouterr().err
    assert TOLD in told
    assert "\x07" not in told


def test_a_bar_that_nobody_sees_is_not_loaded(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "song.wav", np.zeros((4410, 2)), 44100)
    program = (
        "import sys\nfrom tfswa.runtime.cli import main\n"
        "sys.argv = ['tfx', 'separate', 'song.wav']\n"
        "try:\n    main()\nfinally:\n    print('MODULES', *sorted(sys.modules))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (tmp_path / "separated" / "song" / "vocals.wav").exists(), done.stderr
    modules = done.stdout.partition("MODULES")[2].split()
    assert "numpy" in modules
    assert "rich" not in modules
