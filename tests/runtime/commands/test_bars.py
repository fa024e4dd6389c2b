"""What bars show of names reaches the terminal escaped: rich writes past the streams that escape."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tfswa.runtime.commands.evaluate import _Watch
from tfswa.runtime.commands.parity_progress import ParityProgress
from tfswa.runtime.commands.phases import Phases
from tfswa.runtime.commands.separate import _Bar
from tfswa.runtime.evaluation.choices import EvaluationProgress
from tfswa.runtime.parity.pace import ParityStep

NAME, TOLD = "a\x07b[bold]c", "a\\x07b[bold]c"


def separate() -> None:
    with _Bar(NAME, hidden=False) as report:
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


@pytest.mark.parametrize("work", [separate, evaluate, phases, parity, importers, training])
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
